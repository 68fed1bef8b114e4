"""Blocks: fine-tunes of one base as chains of blocks that they share, computed together.

Paper:  "BlockLLM: Multi-tenant Finer-grained Serving for Large Language Models", 2024
Idea:   models are cut into their embedding, attention and MLP of each layer, and head; equal ones are kept
        once, and requests of all models that have one go through it together, in one step. What a step takes
        is then its distinct blocks, whoever asks
Shapes: a folder of checkpoints and LoRA adapters, or a zoo (`models.zoo`) -> models by name
Cost:   memory for every distinct block; a product per distinct block at each place of a step
Claims: blockllm
Differs: one engine has all blocks; queues of their own and hops between devices are simulated (`serve.hops`)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightwork.errors import CheckpointError


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """folder: of fine-tunes of the model they are served beside, each in a folder under whose name it is
    served; or a zoo of them."""

    folder: str = "fine-tunes"

    def turns(self) -> None:
        return None

    def folders(self) -> dict[str, Path]:
        from lightwork.models.zoo import FILE, Zoo

        top = Path(self.folder).expanduser()
        if (top / FILE).is_file():
            return {name: top for name in Zoo(top).applications if name}
        found = sorted(
            {file.parent for name in ("", "adapter_") for file in top.glob(f"*/{name}config.json")}
        )
        if not found:
            raise CheckpointError(
                f"{top} holds no fine-tunes",
                expected="a zoo, or a folder of checkpoints and adapters",
                fix="Blocks(folder='fine-tunes')",
            )
        return {folder.name: folder for folder in found}

    def names(self) -> list[str]:
        return [*self.folders()]

    def router(self) -> Callable[[Sequence[int]], str]:
        return lambda tokens: ""
