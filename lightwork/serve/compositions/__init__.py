"""The kind that lets one engine serve several models of one shape: which they are, and who chooses for a
request that names none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lightwork.memory.residencies import Residency


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """residency: whose weights are in the memory that steps compute from, of at most `gb`; None: what the
    place has. prefetch: copies run beside steps."""

    residency: Residency[Any]
    gb: float | None
    prefetch: bool


class Composition(Protocol):
    """Models by name, beside the one that is served."""

    def turns(self) -> Turns | None:
        """How steps of one model at a time have its weights; None: all are there, and steps mix them."""
        ...

    def folders(self) -> Mapping[str, Path]:
        """Where each is, without the model they are served beside. Raises CheckpointError."""
        ...

    def names(self) -> list[str]:
        """The same names; of models that have a shape and no weights, where they are simulated."""
        ...

    def router(self) -> Callable[[Sequence[int]], str]:
        """The model for a prompt whose request names none. Raises CheckpointError."""
        ...
