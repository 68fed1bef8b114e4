"""The kind that lets one engine serve several models of one shape: which they are, and who chooses for a
request that names none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lightwork.memory.residencies import Residency


class Composition(Protocol):
    """residency: whose weights are in the memory that steps compute from, of at most `gb`; None: what the
    place has. prefetch: copies run beside steps."""

    @property
    def residency(self) -> Residency[Any]: ...
    @property
    def gb(self) -> float | None: ...
    @property
    def prefetch(self) -> bool: ...

    def folders(self) -> Mapping[str, Path]:
        """Checkpoints by name, without the model they are served beside. Raises CheckpointError."""
        ...

    def names(self) -> list[str]:
        """The same names; of models that have a shape and no weights, where they are simulated."""
        ...

    def router(self) -> Callable[[Sequence[int]], str]:
        """The model for a prompt whose request names none. Raises CheckpointError."""
        ...
