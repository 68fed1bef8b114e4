"""Training beside serving, as an engine sees it: which slice comes next. What they compute is train's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from lightwork.models.adapters import Adapter


class Slice(NamedTuple):
    """Tokens [start, start + count) of the current training sequence, through one layer.

    layer: the number of layers is the head: the loss, and its way back to the last layer's output. back: the
    gradients, otherwise forward.
    """

    layer: int
    start: int
    count: int  # type: ignore[assignment]
    back: bool = False

    def split(self, count: int) -> tuple[Slice, Slice]:
        """Its first tokens to be computed, which are the last ones on the way back, and the others."""
        rest = self.count - count
        if self.back:
            return self._replace(start=self.start + rest, count=count), self._replace(count=rest)
        return self._replace(count=count), self._replace(start=self.start + count, count=rest)


class Update(NamedTuple):
    """The trained weights have changed. number: from 1. loss: mean of what was predicted, in nats. tokens: of
    all sequences so far."""

    number: int
    loss: float
    tokens: int


class Trainer(Protocol):
    """Who computes slices, on the thread that computes steps."""

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of the sequences to train on, in order."""
        ...

    @property
    def num_layers(self) -> int: ...

    def run(self, slices: Sequence[Slice]) -> list[Update]:
        """Compute the next slices. Raises whatever goes wrong; it is not asked again then."""
        ...

    def rehearsal(self, length: int) -> Callable[[Slice], object]:
        """Computes slices of a sequence that nothing is learnt from, to see how long they take."""
        ...

    def take(self) -> Adapter | None:
        """What has been trained, if it should be served from now on; once."""
        ...

    def keep(self) -> Update | None:
        """Write what has been trained; returns its last update, or None if there is nothing that has not been
        written yet."""
        ...

    def close(self) -> None:
        """Let go of all memory but what has been trained."""
        ...


GRAIN = 32
"""Windows are multiples of it where sizes matter."""


def window(left: int, limit: int, grain: int = 1) -> int:
    """Tokens of the next window of so many that are left: at most limit, and a multiple of grain if they are
    as many; else all that are left or a power of two. Libraries compile products for each size they meet."""
    most = min(left, limit)
    if most >= grain:
        return most // grain * grain
    return most if most in (0, left) else 1 << most.bit_length() - 1


class Training:
    """How far a trainer has been told to go. The engine moves it on; schedulers read `ahead`.

    A sequence goes forward layer by layer, then through the head, then back; within a layer in windows of any
    size, from the first token on or from the last.
    """

    def __init__(self, lengths: Sequence[int], num_layers: int) -> None:
        self.num_layers = num_layers
        self._lengths = lengths
        self._sequence, self._stage, self._done = 0, 0, 0
        self._stopped = False

    @property
    def finished(self) -> bool:
        return self._stopped or self._sequence >= len(self._lengths)

    def ahead(self, limit: int, *, grain: int = 1) -> list[Slice]:
        """The next slices, of one sequence and of at most `limit` tokens times layers.

        grain: see `window`; one that is smaller, and not the last of its layer, comes alone.
        """
        slices: list[Slice] = []
        if self.finished:
            return slices
        length, stage, done = self._lengths[self._sequence], self._stage, self._done
        while limit > 0 and stage <= 2 * self.num_layers:
            count = window(length - done, limit, grain)
            if slices and count < min(grain, length - done):
                break
            back = stage > self.num_layers
            layer = 2 * self.num_layers - stage if back else stage
            slices.append(Slice(layer, length - done - count if back else done, count, back))
            limit -= count
            stage, done = (stage + 1, 0) if done + count == length else (stage, done + count)
        return slices

    def move(self, slices: Sequence[Slice]) -> None:
        """They are on their way, or done."""
        for piece in slices:
            self._done += piece.count
            if self._done == self._lengths[self._sequence]:
                self._stage, self._done = self._stage + 1, 0
            if self._stage > 2 * self.num_layers:
                self._sequence, self._stage = self._sequence + 1, 0

    def undo(self, slices: Sequence[Slice]) -> None:
        """They are the last that it moved on by, and have not been computed."""
        for piece in reversed(slices):
            if self._done == 0:
                first = self._stage == 0
                self._sequence -= first
                self._stage = 2 * self.num_layers if first else self._stage - 1
                self._done = self._lengths[self._sequence]
            self._done -= piece.count

    def stop(self) -> None:
        """There is nothing more to do."""
        self._stopped = True
