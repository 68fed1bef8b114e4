"""How the layers of one forward are arranged: one after another, or in groups whose attentions go together.

All attentions of a group take the input of its first layer, so that nothing but the number of devices, or
of threads, keeps them from being computed at once. What they give is added in order, and MLPs follow one
another.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from lightwork.errors import RangeError, SpecError


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """groups: neighbouring layers, every layer of the model once and in order.

    Raises SpecError, listing the layers that are missing, repeated, unknown or not behind the one before.
    """

    num_layers: int
    groups: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        layers = [layer for group in self.groups for layer in group]
        known = range(self.num_layers)
        wrong = {
            "missing": [layer for layer in known if layer not in layers],
            "repeated": [layer for layer, times in Counter(layers).items() if times > 1],
            "not in the model": [layer for layer in layers if layer not in known],
            "empty": [i for i, group in enumerate(self.groups) if not group],
        }
        if not any(wrong.values()):
            follow = zip([-1, *layers], layers, strict=False)
            wrong = {"not behind the one before": [layer for last, layer in follow if layer != last + 1]}
        if any(wrong.values()):
            told = "; ".join(f"{', '.join(map(str, some))} {what}" for what, some in wrong.items() if some)
            raise SpecError(
                f"groups of {self.num_layers} layers: {told}",
                expected=f"layers 0 to {self.num_layers - 1}, each once, in order",
                fix=f"groups={LayerPlan.spread(self.num_layers).groups}",
            )

    @classmethod
    def spread(cls, num_layers: int, size: int = 2) -> LayerPlan:
        """Groups of `size` layers, but for an eighth of all at either end, which stay alone: what is inexact
        there harms most. Raises RangeError for a size below 1."""
        if size < 1:
            raise RangeError(f"groups of {size} layers", expected="1 or more", fix="size=2")
        alone = max(1, num_layers // 8)
        starts = [*range(min(alone, num_layers)), *range(alone, num_layers - alone, size)]
        starts += range(max(alone, num_layers - alone), num_layers)
        ends = [*starts[1:], num_layers]
        groups = tuple(tuple(range(start, end)) for start, end in zip(starts, ends, strict=True))
        return cls(num_layers=num_layers, groups=groups)

    @property
    def most(self) -> int:
        """Layers of the largest group."""
        return max(map(len, self.groups))

    @property
    def starts(self) -> list[int]:
        """The first layer of each group, and the number of layers."""
        return [*(group[0] for group in self.groups), self.num_layers]
