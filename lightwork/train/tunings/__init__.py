"""Tunings: what is trained of a model while it serves.

Interface: `Tuning.begin(model, max_len)`, and `lengths(model, max_len)` where training is simulated.
To add one: a file with a frozen dataclass named after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from lightwork.models import Model
    from lightwork.models.compiled import CompiledModel
    from lightwork.serve.training import Trainer

__all__ = ["Tuning"]


class Tuning(Protocol):
    """A training job beside an engine."""

    @property
    def name(self) -> str:
        """Under which it is served what has been trained."""
        ...

    def begin(self, model: Model | CompiledModel, max_len: int) -> Trainer:
        """Who computes it. max_len: tokens of a sequence at most. Raises SpecError, CheckpointError."""
        ...

    def lengths(self, model: str, max_len: int) -> Sequence[int]:
        """Tokens of the sequences that it would train on. model: its URI. Raises as `begin` does."""
        ...
