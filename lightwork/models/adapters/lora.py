"""Lora: adapters of low rank, many at once over one copy of the model.

Paper:  "LoRA: Low-Rank Adaptation of Large Language Models", 2021; batches of several adapters as in
        "Punica: Multi-Tenant LoRA Serving", 2023, and "S-LoRA", 2023
Idea:   W x + scale * B (A x): the product with W is computed once for all rows of a step, whatever their
        adapter, and the second term, a few percent of the work, for each row with its own A and B. A request
        names its adapter as its model; keys and values of different adapters are never shared
Shapes: A [rank, inputs], B [outputs, rank], scale = alpha / rank, or alpha / sqrt(rank) (rsLoRA)
Cost:   per adapter and matrix 4 * rank * (inputs + outputs) bytes, read once per step that has a row of it
Claims: flexllm
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightwork.models.adapters import Adapter
from lightwork.models.peft import read_adapters
from lightwork.models.spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """folder: of adapters as PEFT writes them, each in a folder of its own, under whose name it is served."""

    folder: str = "adapters"

    def read(self, spec: ModelSpec) -> Sequence[Adapter]:
        return read_adapters(Path(self.folder), spec)
