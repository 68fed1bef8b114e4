"""What there is to see of the actors of one place, without looking at all of them.

Who is busy is found among the kernel's tasks, which are in the order in which they began: the first are the
slowest. Classes are counted as actors come, so many at a look, and uncounted as they are killed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from itertools import islice
from reprlib import Repr
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lightwork.errors import ActorLostError
from lightwork.runtime.calls import Call
from lightwork.runtime.clock import cpu_s
from lightwork.runtime.mailbox import ABSENT, BITS, MAX_PLACES, Mailbox

if TYPE_CHECKING:
    from lightwork.runtime.table import Table, Tally

State = Literal["idle", "busy", "paused", "killed"]
EDGES_S = (0.0, *(round(10 ** (half / 2), 6) for half in range(-6, 11)))
"""Between how long the busy have been busy: two to a power of ten, from a millisecond to a day."""
AT_A_LOOK = 50_000
"""Busy actors, and new ones, that one look goes through; of more that are busy it takes a part."""
AT_A_PAGE = 100_000
"""Entries that are looked through for one page of a list."""
LONGEST = 2_000
"""Characters of what is shown of a field."""


class Seen(NamedTuple):
    """An actor. method, for_s: what it does, and since when; None if nothing. waiting: messages."""

    id: int
    kind: str
    state: State
    waiting: int
    method: str | None
    for_s: float | None


class Look(NamedTuple):
    """A place at a moment. kinds: actors by class, as far as counted. busy_for: by EDGES_S, in multiples of
    `every`: one of so many was looked at. slowest: who has been busy longest. cost_s: CPU of this look."""

    at_s: float
    tally: Tally
    kinds: dict[str, int]
    busy_for: list[int]
    every: int
    slowest: list[Seen]
    cost_s: float


class Page(NamedTuple):
    """Part of the list of actors. after: where the next begins, None if there is none: it may hold fewer than
    were asked for and not be the last."""

    actors: list[Seen]
    after: int | None


class Described(NamedTuple):
    """An actor with its fields as texts."""

    seen: Seen
    fields: list[tuple[str, str]]


class Census:
    """How many actors of each class a table has, of those counted so far."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self._counted = [0] * MAX_PLACES

    def take(self, rows: list[list[Any]], most: int) -> None:
        """Count some more."""
        for creator, row in enumerate(rows[:MAX_PLACES]):
            first = self._counted[creator]
            new = islice(row, first, first + most)
            self.kinds.update(_class(entry) for entry in new if _there(entry))
            self._counted[creator] = min(len(row), first + most)
            most -= self._counted[creator] - first

    def change(self, id: int, entry: Any, by: int) -> None:
        """An entry goes (-1) or comes (1) where it may have been counted already."""
        if id >> BITS < self._counted[id & MAX_PLACES] and _there(entry):
            self.kinds[_class(entry)] += by


def look(table: Table, top: int) -> Look:
    """The place as it is. top: how many of the slowest."""
    began_s, now_s = cpu_s(), table.kernel.now()
    if table.census is None:
        table.census = Census()
    table.census.take(table.rows, AT_A_LOOK)
    tally = table.tally()
    every = 1 + tally.busy // AT_A_LOOK
    since = [call.since_s for call in _busy(table, every)]
    rank = [bisect_right(since, now_s - edge) for edge in EDGES_S[1:-1]]  # so many have been busy as long
    edges = [len(since), *rank, 0]
    counts = [(edges[i] - edges[i + 1]) * every for i in range(len(EDGES_S) - 1)]
    slowest = [seen(table, call.id, now_s) for call in islice(_busy(table, 1), top)] if top else []
    kinds = {name: num for name, num in table.census.kinds.items() if num > 0}
    return Look(now_s, tally, kinds, counts, every, slowest, cpu_s() - began_s)


def _busy(table: Table, every: int) -> Iterator[Call]:
    """Of one in `every` task, those of this place's actors; who began first comes first."""
    busy = table.busy
    for task in islice(table.kernel.tasks, 0, None, every):
        if type(task) is busy and task.table is table:
            yield task


def page(table: Table, state: State | None, after: int | None, most: int) -> Page:
    """Up to `most` actors behind the one of that id, in order of who created them and when. state: of these
    only."""
    now_s, last, left = table.kernel.now(), after, AT_A_PAGE
    found: list[Seen] = []
    begin, first = (0, 0) if after is None else (after & MAX_PLACES, (after >> BITS) + 1)
    for creator in range(begin, MAX_PLACES):
        row = table.rows[creator]
        for i in range(first, len(row)):
            if left == 0 or len(found) == most:
                return Page(found, last)
            left -= 1
            last = i << BITS | creator
            entry = row[i]
            if (entry is None or _there(entry)) and state in (None, _state(table, entry)):
                found.append(seen(table, last, now_s))
        first = 0
    return Page(found, None)


def seen(table: Table, id: int, now_s: float) -> Seen:
    entry = table.rows[id & MAX_PLACES][id >> BITS]
    call, waiting = entry, 0
    if type(entry) is Mailbox:
        call, waiting = entry.call, len(entry.waiting or ())
    if not isinstance(call, Call):
        return Seen(id, _class(entry), _state(table, entry), waiting, None, None)
    for_s = max(0.0, now_s - call.since_s)
    return Seen(id, _class(entry), _state(table, entry), waiting, call.method, for_s)


def describe(table: Table, id: int) -> Described:
    """An actor and what it holds. Raises ActorLostError if there is none, nor ever was."""
    row = table.rows[id & MAX_PLACES] if 0 <= id & MAX_PLACES < MAX_PLACES else []
    entry = row[id >> BITS] if 0 <= id >> BITS < len(row) else None
    if entry is None and not 0 <= id >> BITS < len(row):
        raise ActorLostError(f"there is no actor {id}", expected="the id of one of this place")
    shown = seen(table, id, table.kernel.now())
    if entry is None:
        return Described(shown, [])
    if type(entry) is tuple:
        _, key, *args = entry
        return Described(shown, [("key", _text(key)), ("to be made from", _text(tuple(args)))])
    return Described(shown, [(name, _text(value)) for name, value in _fields(_actor(entry))])


def _there(entry: Any) -> bool:
    return entry is not None and not (type(entry) is Mailbox and entry.actor is ABSENT)


def _actor(entry: Any) -> Any:
    return entry.actor if type(entry) is Mailbox or isinstance(entry, Call) else entry


def _class(entry: Any) -> str:
    if entry is None:
        return ""
    actor = _actor(entry)
    cls: type = actor[0] if type(actor) is tuple else type(actor)
    return cls.__name__


def _state(table: Table, entry: Any) -> State:
    if entry is None:
        return "killed"
    if table.held is not None or (type(entry) is Mailbox and entry.paused):
        return "paused"
    return "busy" if type(entry) is Mailbox or isinstance(entry, Call) else "idle"


def _fields(actor: Any) -> Iterator[tuple[str, Any]]:
    """In the order in which its classes name them, then as they were set."""
    names = [name for cls in reversed(type(actor).__mro__) for name in _slots(cls)]
    for name in dict.fromkeys([*names, *getattr(actor, "__dict__", ())]):
        if hasattr(actor, name):
            yield name, getattr(actor, name)


def _slots(cls: type) -> tuple[str, ...]:
    slots = cls.__dict__.get("__slots__", ())
    named = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in named if not name.startswith("__"))


class _Short(Repr):
    """Texts of values of any size, without reading through all of a large one."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 5
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxdeque = self.maxarray = 100
        self.maxstring = self.maxother = self.maxlong = LONGEST

    def repr_instance(self, x: Any, level: int) -> str:
        if is_dataclass(x) and not isinstance(x, type):
            if level <= 0:
                return f"{type(x).__name__}(...)"
            told = ", ".join(f"{f.name}={self.repr1(getattr(x, f.name, None), level - 1)}" for f in fields(x))
            return f"{type(x).__name__}({told})"
        return super().repr_instance(x, level)


_SHORT = _Short()


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else _SHORT.repr(value)
    cut = f" ... (cut: {len(text):,} characters)"
    return text if len(text) <= LONGEST else text[: LONGEST - len(cut)] + cut
