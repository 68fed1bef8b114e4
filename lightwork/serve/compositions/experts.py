"""Experts: many models that are each good at something, few of them in fast memory at a time.

Paper:  "SambaNova SN40L: Scaling the AI Memory Wall with Dataflow and Composition of Experts", 2024
Idea:   every folder in `folder` is a checkpoint and an expert of that name; requests name one, or a trained
        router reads the prompt and does (`router.safetensors` in the folder). Weights are copied whole
        into a memory of `gb` when their turn comes, that of the next while this one computes
Shapes: a folder of checkpoints of one shape -> models by name
Cost:   a copy of the weights per miss of `residency`, beside the steps of the turn before
Claims: sn40l
Differs: the model they are served beside is the expert for prompts that no other is for, and takes its turn
        in the same memory; the publication's router is a language model, which stays there
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightwork.errors import CheckpointError, RangeError
from lightwork.memory.residencies import Residency
from lightwork.memory.residencies.lru import LRU
from lightwork.serve.compositions import Turns
from lightwork.serve.prompt_router import read_router


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """gb: of the memory that steps compute from, 10^9 bytes; None: half of what is free on this machine, all
    that the KV leaves where simulated. num: of experts, named "expert 1" and so on, where there is no folder
    because they are simulated. prefetch=False copies when a turn begins."""

    folder: str = "experts"
    gb: float | None = None
    residency: Residency[Any] = field(default_factory=LRU)
    num: int | None = None
    prefetch: bool = True

    def __post_init__(self) -> None:
        if (self.gb is not None and not self.gb > 0) or (self.num is not None and self.num < 1):
            raise RangeError(
                f"{self!r} is not possible",
                expected="gb > 0, and num >= 1 if it is given",
                fix="Experts(folder='experts', gb=4.0)",
            )

    def turns(self) -> Turns:
        return Turns(residency=self.residency, gb=self.gb, prefetch=self.prefetch)

    def folders(self) -> dict[str, Path]:
        top = Path(self.folder).expanduser()
        found = sorted(top.glob("*/config.json"))
        if not found:
            raise CheckpointError(
                f"{top} holds no experts",
                expected="a folder of checkpoints",
                fix="Experts(folder='experts')",
            )
        return {file.parent.name: file.parent for file in found}

    def names(self) -> list[str]:
        return [f"expert {i + 1}" for i in range(self.num or 0)] or [*self.folders()]

    def router(self) -> Callable[[Sequence[int]], str]:
        found = read_router(Path(self.folder).expanduser())
        return found.route if found is not None else lambda tokens: ""
