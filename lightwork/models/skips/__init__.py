"""The kind of technique that leaves out experts a row was routed to, where they would change little.

R rows  K experts that a row takes
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Skip(Protocol):
    """Which of its experts a row really goes through. Not lossless: say what it does to the loss."""

    def keep(self, gates_RK: Tensor) -> Tensor:
        """bool [R, K], at least one of each row. gates_RK: those of the chosen, the largest first."""
        ...
