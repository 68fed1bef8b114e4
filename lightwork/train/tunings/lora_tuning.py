"""LoraTuning: a low-rank adapter is trained on a file of examples while the model serves.

Paper:  "LoRA: Low-Rank Adaptation of Large Language Models", 2021; training in windows is from "FlexLLM: A
        System for Co-Serving Large Language Model Inference and Parameter-Efficient Finetuning", 2024
Idea:   frozen weights, and beside each matrix a product of two thin ones that are learnt. Windows of a
        sequence go forward like chunks of a prompt, and back a layer at a time, in whatever sizes there is
        time for
Shapes: JSON lines -> a folder in PEFT's form
Cost:   per token 6 operations per weight: forward, forward again, and back
Claims: flexllm
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lightwork.errors import RangeError, SpecError

if TYPE_CHECKING:
    from lightwork.models import Model
    from lightwork.models.compiled import CompiledModel
    from lightwork.serve.training import Trainer


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraTuning:
    """data: a file of JSON lines. out: the folder to write.

    rank, alpha: of the adapter, which is scaled by alpha / rank. modules: "all-linear", or names with commas
    between. epochs, batch, learning_rate: see `Schedule`.
    """

    data: str = "examples.jsonl"
    out: str = "adapters/tuned"
    rank: int = 16
    alpha: float = 32.0
    modules: str = "all-linear"
    epochs: int = 1
    batch: int = 8
    learning_rate: float = 2e-4
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rank", "alpha", "epochs", "batch", "learning_rate"):
            if not getattr(self, name) > 0:
                raise RangeError(
                    f"LoraTuning cannot have {name}={getattr(self, name)}",
                    expected="more than 0",
                    fix=f"raise {name}",
                )

    @property
    def name(self) -> str:
        return Path(self.out).name

    def begin(self, model: Model | CompiledModel, max_len: int) -> Trainer:
        from lightwork.models.peft import write_adapter
        from lightwork.train.examples import read_examples
        from lightwork.train.finetune import FineTuning, Schedule
        from lightwork.train.frozen import frozen
        from lightwork.train.lora import Lora

        out = Path(self.out)
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise SpecError(f"{out} is there already", expected="a new folder", fix="another out=")
        try:  # now, rather than when there is something to lose
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SpecError(
                f"{out} cannot be made: {error.strerror}", expected="a new folder", fix="another out="
            ) from error
        names = () if self.modules == "all-linear" else tuple(self.modules.split(","))
        lora = Lora(
            model.spec, rank=self.rank, alpha=self.alpha, modules=names, seed=self.seed, device=model.device
        )
        schedule = Schedule(epochs=self.epochs, batch=self.batch, learning_rate=self.learning_rate)
        examples = read_examples(Path(self.data), model.tokenizer, max_len)
        return FineTuning(
            frozen(model),
            lora,
            examples,
            schedule,
            name=self.name,
            save=lambda adapter: write_adapter(out, adapter, model.spec),
            device=model.device,
        )

    def lengths(self, model: str, max_len: int) -> Sequence[int]:
        from lightwork.models import resolve
        from lightwork.models.tokenizer import Tokenizer
        from lightwork.train.examples import read_examples

        if model.startswith("shape:"):
            raise SpecError(
                f"{model} has no tokenizer, which says how long the examples are",
                expected="a model with its files",
                fix="hf:./folder",
            )
        examples = read_examples(Path(self.data), Tokenizer(resolve(model)), max_len)
        return [len(example.tokens) for example in examples] * self.epochs
