"""The kind of technique that judges drafts: one file per verifier, and the values they speak of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from lightwork.decode.proposers import Draft
    from lightwork.decode.sampling import Floats, Pick


class PickAt(Protocol):
    """The target's choice after a node, behind the tokens emitted in this step so far. top: how many of the
    most probable tokens it is to tell, with their log-probabilities."""

    def __call__(self, node: int, emitted: Sequence[int], top: int | None = None) -> Pick: ...


class Verdict(NamedTuple):
    """What one verification decided; a NamedTuple for the reason that `Pick` is one.

    emitted: at least one pick: the accepted path and the target's own choice after it.
    path: node ids of the accepted draft rows, root to leaf, whose KV is kept. probes: float32 [c, V], the
    logits of the probes under the last of these, in the draft's order; the engine adds them, None if there
    are none.
    """

    emitted: tuple[Pick, ...]
    path: tuple[int, ...] = ()
    probes: Floats | None = None


class Verifier(Protocol):
    """Which drafted tokens stand."""

    def verify(self, draft: Draft, pick: PickAt) -> Verdict: ...
