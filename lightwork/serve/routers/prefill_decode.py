"""Prefill and decode apart (DistServe): some engines compute prompts, others generate, split as suits each.

Paper:  "DistServe: Disaggregating Prefill and Decoding for Goodput-optimized Large Language Model Serving",
        2024
Idea:   a prompt goes to the prefill engine with the shortest queue; with its first token it queues at the
        decode engine of least load, which pulls its keys and values when it has room. Until then they stay
        where they were computed: that memory is the buffer between the two
Shapes: Sequence -> number of an engine, prefill engines first
Cost:   O(engines) per request
Claims: distserve
Differs: a decode engine short of memory recomputes whom it preempts; with HostMemory(parts=True) it swaps,
        and who comes back goes on decoding. Where no engine of one sort is left, those of the other do its
        work
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightwork.errors import RangeError
from lightwork.serve.routers import Member, Seat
from lightwork.serve.sequence import Sequence as Seq


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillDecode:
    """prefill, decode: engines of each sort; the others: devices of one, None as the plan says."""

    prefill: int = 1
    decode: int = 1
    prefill_tp: int | None = None
    prefill_pp: int | None = None
    decode_tp: int | None = None
    decode_pp: int | None = None

    def __post_init__(self) -> None:
        if min(self.prefill, self.decode) < 1:
            raise RangeError(
                f"{self!r} lacks engines", expected="at least one of each sort", fix="PrefillDecode()"
            )

    def seats(self) -> list[Seat]:
        prefill = Seat(tp=self.prefill_tp, pp=self.prefill_pp, hands_over=True)
        decode = Seat(tp=self.decode_tp, pp=self.decode_pp)
        return [prefill] * self.prefill + [decode] * self.decode

    def init(self) -> None:
        return None

    def place(self, state: None, seq: Seq, members: Sequence[Member]) -> int:
        prefill, decode = self._alive(members)
        among = decode or prefill if seq.num_output else prefill or decode
        return min(among, key=lambda i: (members[i].tokens, i))

    def next(self, state: None, seq: Seq, at: int, members: Sequence[Member]) -> int:
        _, decode = self._alive(members)
        if at in decode or not decode:
            return at
        return min(decode, key=lambda i: (members[i].requests, i))

    def _alive(self, members: Sequence[Member]) -> tuple[list[int], list[int]]:
        alive = [i for i, member in enumerate(members) if member.alive]
        return [i for i in alive if i < self.prefill], [i for i in alive if i >= self.prefill]
