"""transformers: `generate` for one request, static padded batches of like length for many."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import transformers
from transformers import AutoModelForCausalLM
from worker import Options, Tokens, run

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
STATIC_BATCH = 16


class Transformers:
    def __init__(self, options: Options) -> None:
        torch.set_num_threads(options.threads)
        self._model = AutoModelForCausalLM.from_pretrained(
            options.model, dtype=DTYPES[options.weights], attn_implementation="sdpa"
        )
        self._model.eval()
        self.versions = {"transformers": transformers.__version__, "torch": torch.__version__}

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Tokens], lengths: Sequence[int]) -> list[Tokens]:
        order = sorted(range(len(prompts)), key=lambda i: (lengths[i], len(prompts[i])))
        outputs: list[Tokens] = [[] for _ in prompts]
        for start in range(0, len(order), STATIC_BATCH):
            group = order[start : start + STATIC_BATCH]
            produced = self._padded([prompts[i] for i in group], max(lengths[i] for i in group))
            for i, tokens in zip(group, produced, strict=True):
                outputs[i] = tokens[: lengths[i]]
        return outputs

    def _padded(self, prompts: Sequence[Tokens], length: int) -> list[Tokens]:
        """All of one batch to one length, prompts padded on the left."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        made = self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=length,
            min_new_tokens=length,
            do_sample=False,
            pad_token_id=0,
        )
        rows: list[Tokens] = made[:, longest:].tolist()
        return rows


if __name__ == "__main__":
    run(Transformers)
