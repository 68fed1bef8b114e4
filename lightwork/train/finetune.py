"""Fine-tuning an adapter of a model that serves meanwhile: slice by slice, whenever there is time for one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite

import torch

from lightwork.errors import LightworkError
from lightwork.models.adapters import Adapter
from lightwork.serve.training import Slice, Update
from lightwork.train.examples import Example
from lightwork.train.lora import Lora
from lightwork.train.windows import Frozen, Windows


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """epochs: over the examples. batch: examples per update. learning_rate: rises over the first warmup
    updates, then falls linearly to 0. max_norm: gradients are clipped to it.
    """

    epochs: int = 1
    batch: int = 8
    learning_rate: float = 2e-4
    warmup: int = 10
    weight_decay: float = 0.0
    max_norm: float = 1.0


class FineTuning:
    """A Trainer of one adapter, with AdamW, in the order of the examples.

    The loss of a batch is the mean over its predicted tokens. name: of the adapter. save: called with it
    after each epoch, and by `keep`.
    """

    def __init__(
        self,
        frozen: Frozen,
        lora: Lora,
        examples: Sequence[Example],
        schedule: Schedule,
        name: str = "adapter",
        save: Callable[[Adapter], None] = lambda adapter: None,
        device: str = "cpu",
    ) -> None:
        self._frozen, self._lora, self._device = frozen, lora, device
        self._examples = examples
        self._order = [*examples] * schedule.epochs
        self._schedule, self._name, self._save = schedule, name, save
        self._due: Adapter | None = None
        self._optimizer = torch.optim.AdamW(
            [*lora], lr=schedule.learning_rate, weight_decay=schedule.weight_decay
        )
        self.num_updates = -(-len(self._order) // schedule.batch)
        self._number = self._tokens = 0
        self._last: Update | None = None
        self._kept: Update | None = None
        self._loss = 0.0
        self._windows: Windows | None = None
        self._closed = False

    @property
    def lengths(self) -> list[int]:
        return [len(example.tokens) for example in self._order]

    @property
    def num_layers(self) -> int:
        num_layers: int = self._frozen.spec.num_layers
        return num_layers

    @property
    def nbytes(self) -> int:
        """Held between slices: adapter, gradients, the optimizer's state, and what is kept of a sequence."""
        states = (t for state in self._optimizer.state.values() for t in state.values())
        held = [*self._lora, *(p.grad for p in self._lora if p.grad is not None), *states]
        held_bytes: int = sum(t.nbytes for t in held)
        return held_bytes + (self._windows.nbytes if self._windows is not None else 0)

    def run(self, slices: Sequence[Slice]) -> list[Update]:
        """Compute the next slices. Raises LightworkError when the loss is not a number."""
        updates = []
        for piece in slices:
            if self._closed:
                break
            self._windows = self._windows or self._begin()
            self._loss += self._windows.compute(piece)
            if not isfinite(self._loss):
                raise LightworkError(
                    f"the loss is {self._loss} in update {self._update + 1}",
                    expected="a number",
                    fix="a lower learning rate",
                )
            if piece.back and piece.layer == piece.start == 0:
                updates += self._end()
        return updates

    def _begin(self) -> Windows:
        example, size = self._order[self._number], self._schedule.batch
        first = self._number // size * size
        predicted = sum(sum(e.predicted[1:]) for e in self._order[first : first + size])
        weights_T = torch.tensor(example.predicted, dtype=torch.float64, device=self._device) / predicted
        tokens_T = torch.tensor(example.tokens, dtype=torch.int64, device=self._device)
        return Windows(self._frozen, self._lora, tokens_T, weights_T)

    def _end(self) -> list[Update]:
        """A sequence has gone back; its batch may be complete."""
        before = max(0, self._number + 1 - self._schedule.batch)
        self._tokens += len(self._order[self._number].tokens)
        self._number += 1
        self._windows = None
        last = self._number == len(self._order)
        if self._number % self._schedule.batch and not last:
            return []
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate()
        norm = torch.nn.utils.clip_grad_norm_([*self._lora], self._schedule.max_norm)
        if not isfinite(norm):
            raise LightworkError(
                f"gradients are {float(norm)} in update {self._update + 1}",
                expected="numbers",
                fix="a lower learning rate",
            )
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._last = update = Update(self._update + 1, self._loss, self._tokens)
        self._loss = 0.0
        if last or self._number // len(self._examples) > before // len(self._examples):
            self._due = self._write(update)
        return [update]

    @property
    def _update(self) -> int:
        """How many there have been."""
        return self._last.number if self._last is not None else 0

    def _write(self, update: Update) -> Adapter:
        adapter = self._lora.adapter(self._name)
        self._save(adapter)
        self._kept = update
        return adapter

    def keep(self) -> Update | None:
        if self._last is None or self._last is self._kept:
            return None
        self._write(self._last)
        return self._last

    def _rate(self) -> float:
        schedule, left = self._schedule, 1 - self._update / self.num_updates
        return schedule.learning_rate * min(left, (self._update + 1) / max(1, schedule.warmup))

    def take(self) -> Adapter | None:
        due, self._due = self._due, None
        return due

    def rehearsal(self, length: int) -> Callable[[Slice], object]:
        tokens_T = torch.zeros(length, dtype=torch.int64, device=self._device)
        windows = Windows(self._frozen, self._lora, tokens_T, torch.zeros(length, device=self._device))

        def compute(piece: Slice) -> None:
            windows.compute(piece)
            self._optimizer.zero_grad()

        return compute

    def close(self) -> None:
        self._closed, self._windows = True, None
        self._optimizer.state.clear()
        self._optimizer.zero_grad()
