"""Which items lie where in a memory with a hard limit: names, slots and bytes, never the bytes themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightwork.errors import CapacityError, InvariantError
from lightwork.memory.residencies import Residency


class Residents:
    """Items in slots as large as the largest of them, so that any can take any other's place.

    sizes: bytes of each item. cap_bytes: of all slots together. copies, hits: of the uses so far, those that
    needed a copy, and others; a copy made ahead counts when it is begun. held: the items in use, which stay.
    ahead: what the policy would fetch next. order: of uses, over and over, where it is known.
    """

    def __init__(
        self, sizes: Mapping[str, int], cap_bytes: int, policy: Residency[Any], order: Sequence[str] = ()
    ) -> None:
        self.sizes = sizes
        self.cap_bytes = cap_bytes
        self.policy = policy
        largest = max(sizes, key=lambda name: (sizes[name], name))
        self.slot_bytes = sizes[largest]
        if self.slot_bytes > cap_bytes:
            raise CapacityError(
                f"{largest!r} takes {self.slot_bytes} bytes",
                expected=f"at most {cap_bytes}, the memory that it is to be copied into",
                fix="give more memory, or store it in fewer bits",
            )
        self.num_slots = min(len(sizes), cap_bytes // self.slot_bytes)
        self.copies = 0
        self.uses = 0
        self.held: frozenset[str] = frozenset()
        self.ahead: tuple[str, ...] = ()
        self._state = policy.init(order)
        self._slots: dict[str, int] = {}
        self._coming: set[str] = set()
        self._free = [*range(self.num_slots)]

    def __contains__(self, name: str) -> bool:
        """Whether it is there, whole."""
        return name in self._slots and name not in self._coming

    @property
    def nbytes(self) -> int:
        """Bytes of what is there or is being copied."""
        return sum(self.sizes[name] for name in self._slots)

    @property
    def hits(self) -> int:
        return self.uses - self.copies

    def use(self, *names: str) -> None:
        """They are needed next, all of them together, and no others are from now on."""
        self.uses += len(names)
        self.held = frozenset(names)
        for name in names:
            self.ahead = tuple(self.policy.use(self._state, name))

    def slot(self, name: str) -> int:
        """Where it lies. Raises InvariantError if it is not there whole."""
        if name not in self:
            raise InvariantError(f"{name!r} is not resident", expected="one that has arrived")
        return self._slots[name]

    def begin(self, name: str) -> int | None:
        """Begin to copy an item: its slot, taken from another if none is free; None if none can be had."""
        if name in self._slots:
            raise InvariantError(f"{name!r} is copied twice", expected="one copy of each item")
        if not self._free:
            among = [n for n in self._slots if n not in self.held and n not in self._coming]
            if not among:
                return None
            self._free.append(self._slots.pop(self.policy.victim(self._state, among)))
        self._slots[name] = self._free.pop()
        self._coming.add(name)
        self.copies += 1
        if self.nbytes > self.cap_bytes:
            raise InvariantError(f"{self.nbytes} bytes are resident", expected=f"at most {self.cap_bytes}")
        return self._slots[name]

    def turn(self, name: str) -> list[tuple[str, int]]:
        """It is needed next: the copies to begin, (item, slot), in the order in which they are needed."""
        self.use(name)
        copies = []
        for wanted in (name, *self.ahead):
            if wanted not in self._slots and (slot := self.begin(wanted)) is not None:
                copies.append((wanted, slot))
        return copies

    def end(self, name: str, *, arrived: bool) -> None:
        """A copy has ended."""
        self._coming.remove(name)
        if not arrived:
            self._free.append(self._slots.pop(name))
