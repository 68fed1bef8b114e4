"""One vector of a text from the hidden states of its tokens, as a checkpoint in sentence-transformers' layout
says: modules.json names a folder, usually 1_Pooling, whose config.json has the mode.

T tokens  d hidden
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import CheckpointError
from lightwork.models import resolve
from lightwork.models.spec import read_json, read_objects

States = NDArray[np.float32]
FOLDER = "1_Pooling"
LAST = "lasttoken"
MODES: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "cls": lambda states_Td: states_Td[0],
    "max": lambda states_Td: states_Td.max(0),
    "mean": lambda states_Td: states_Td.mean(0),
    "mean_sqrt_len_tokens": lambda states_Td: states_Td.sum(0) / np.sqrt(len(states_Td)),
    "weightedmean": lambda states_Td: np.average(states_Td, 0, np.arange(1, len(states_Td) + 1)),
    LAST: lambda states_Td: states_Td[-1],
}
"""By name; a vector of several modes has them in this order."""
FIELDS = {name: f"pooling_mode_{name}" for name in MODES} | {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
}
BESIDE = ("Transformer", "Normalize")
"""Modules that ask for nothing more: a model, and vectors of unit length, which all are here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooling:
    """modes: of MODES; their vectors stand one behind the other."""

    modes: tuple[str, ...] = (LAST,)

    @property
    def reads_all(self) -> bool:
        """Whether it reads more than the last token's state."""
        return self.modes != (LAST,)

    def vector(self, states_Td: States) -> States:
        """The vector, [d times modes], float32. states_Td: of every token, or of the last one if it reads no
        more."""
        states = states_Td.astype(np.float64)
        return np.concatenate([MODES[mode](states) for mode in self.modes]).astype(np.float32)


def read_pooling(uri: str) -> Pooling:
    """How a model's checkpoint pools; the last token's state where it does not say.

    Raises CheckpointError for a pooling, or a module behind it, that is not done here.
    """
    folder = resolve(uri)
    if not folder.is_dir():
        return Pooling()
    place = _place(folder)
    return Pooling() if place is None else Pooling(modes=_modes(read_json(place, "config.json"), place))


def read_dimensions(uri: str, whole: int) -> Sequence[int]:
    """How many numbers of a vector, the first ones, are worth something by themselves: `whole`, all, and what
    its checkpoint was trained for, ascending (Matryoshka, as vLLM reads it of config.json).

    Raises CheckpointError for what is no such number.
    """
    folder = resolve(uri)
    told = read_json(folder, "config.json", optional=True) if folder.is_dir() else {}
    named = told.get("matryoshka_dimensions")
    if named is None:
        return range(1, whole + 1) if told.get("is_matryoshka") is True else (whole,)
    if not isinstance(named, list) or not all(isinstance(n, int) and 1 <= n <= whole for n in named):
        raise CheckpointError(
            f"matryoshka_dimensions of {folder / 'config.json'} are {str(named)[:80]}",
            expected=f"a list of numbers from 1 to {whole}",
        )
    return sorted({*named, whole})


def _place(folder: Path) -> Path | None:
    """The folder of its pooling."""
    if not (folder / "modules.json").is_file():
        return folder / FOLDER if (folder / FOLDER / "config.json").is_file() else None
    found = None
    for module in read_objects(folder, "modules.json"):
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            found = folder / str(module.get("path", FOLDER))
        elif kind not in BESIDE:
            raise CheckpointError(
                f"modules.json of {folder} asks for {kind[:40]!r}",
                expected="Transformer, Pooling and Normalize",
                fix="remove modules.json: then a text's vector is its last token's state",
            )
    return found


def _modes(told: Mapping[str, Any], place: Path) -> tuple[str, ...]:
    """Older files have a field for each mode, newer ones their names in one."""
    if (named := told.get("pooling_mode")) is not None:
        asked = {named} if isinstance(named, str) else {*map(str, named)}
    else:
        names = {field: name for name, field in FIELDS.items()}
        asked = {names.get(field, field) for field in told if "_mode_" in field and told[field] is True}
    if not asked or not asked <= MODES.keys():
        raise CheckpointError(
            f"{place / 'config.json'} asks for pooling {' and '.join(sorted(asked))[:80] or 'of nothing'}",
            expected=" or ".join(FIELDS.values()),
        )
    return tuple(name for name in MODES if name in asked)
