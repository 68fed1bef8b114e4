"""What an engine in a process of its own is told, and says: values, the same at both ends of its pipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lightwork.runtime.clock import Moment
from lightwork.runtime.line import Link
from lightwork.serve.plan import Plan, Setting
from lightwork.serve.sequence import Limits
from lightwork.serve.sequence import Sequence as Seq


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a member is to be.

    cores: to stay on; none: all. memory_bytes: free for it. moment: of the clock of all, now. shares: whether
    it maps the memory of members of its machine, or keys and values take the link. link: to it and back.
    """

    plan: Plan
    number: int
    cores: Sequence[int]
    memory_bytes: int
    moment: Moment
    hands_over: bool
    shares: bool
    link: Link


class Memory(NamedTuple):
    """Where a member's keys and values are, for those that can see its files. path: to open it by. name: what
    that path then leads to, nowhere else. num_blocks: of KV."""

    path: str
    name: str
    num_blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What a member has become. nbytes: of its weights. variants: of its model."""

    limits: Limits
    vocab_size: int
    kv_tokens: int
    memory: Memory
    nbytes: int
    variants: Mapping[str, str]
    settings: Sequence[Setting]


class Figures(NamedTuple):
    """What a sequence was when it ended or went on elsewhere."""

    computed: int
    started_s: float | None
    cached: int
    num_preempted: int
    drafted: int
    accepted: int

    @classmethod
    def of(cls, seq: Seq) -> Figures:
        return cls(*(getattr(seq, name) for name in cls._fields))

    def write(self, seq: Seq) -> None:
        for name, value in zip(self._fields, self, strict=True):
            setattr(seq, name, value)
