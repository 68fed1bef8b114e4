"""The kind of technique that judges drafts: one file per verifier, and the values they speak of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from lightwork.decode.proposers import Draft
    from lightwork.decode.sampling import Floats, Pick

PickAt = Callable[[int, Sequence[int]], "Pick"]
"""(node, tokens emitted in this step so far) -> the target's choice after that node."""


class Verdict(NamedTuple):
    """What one verification decided; a NamedTuple for the reason that `Pick` is one.

    emitted: at least one pick: the accepted path and the target's own choice after it.
    path: node ids of the accepted draft rows, root to leaf, whose KV is kept. probes: float32 [c, V], the
    logits of the probes under the last of these; the engine adds them, None if there are none.
    """

    emitted: tuple[Pick, ...]
    path: tuple[int, ...] = ()
    probes: Floats | None = None


class Verifier(Protocol):
    """Which drafted tokens stand."""

    def verify(self, draft: Draft, pick: PickAt) -> Verdict: ...
