"""transformers: `generate` for one request, static padded batches of like length for many.

With guesses one request after another, which is all that its assisted generation and prompt lookup take.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM
from worker import Options, Tokens, run

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
STATIC_BATCH = 16
NGRAM = 6
"""The longest n-gram that is looked up, as lightwork's `Ngram` does."""


class Transformers:
    def __init__(self, options: Options) -> None:
        torch.set_num_threads(options.threads)
        self._model = self._load(options.model, options)
        self._batch = min(STATIC_BATCH, options.seqs)
        self._guesses = self._guessing(options)
        self.steps = 0
        if self._guesses:
            self._model.register_forward_pre_hook(self._count)
        self.versions = {"transformers": transformers.__version__, "torch": torch.__version__}

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Tokens], lengths: Sequence[int]) -> list[Tokens]:
        order = sorted(range(len(prompts)), key=lambda i: (lengths[i], len(prompts[i])))
        outputs: list[Tokens] = [[] for _ in prompts]
        for start in range(0, len(order), self._batch):
            group = order[start : start + self._batch]
            produced = self._padded([prompts[i] for i in group], max(lengths[i] for i in group))
            for i, tokens in zip(group, produced, strict=True):
                outputs[i] = tokens[: lengths[i]]
        return outputs

    def _padded(self, prompts: Sequence[Tokens], length: int) -> list[Tokens]:
        """All of one batch to one length, prompts padded on the left."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        # With guesses a least length would cost a pass of Python for each of them; no text here ends early.
        least = {} if self._guesses else {"min_new_tokens": length}
        made = self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=length,
            do_sample=False,
            pad_token_id=0,
            **least,
            **self._guesses,
        )
        rows: list[Tokens] = made[:, longest:].tolist()
        return rows

    def _load(self, model: str, options: Options) -> Any:
        loaded = AutoModelForCausalLM.from_pretrained(
            model, dtype=DTYPES[options.weights], attn_implementation="sdpa"
        )
        return loaded.eval()

    def _guessing(self, options: Options) -> dict[str, Any]:
        """What `generate` is told. Always k tokens, however sure the draft model is."""
        if options.guesses == "lookup":
            return {"prompt_lookup_num_tokens": options.k, "max_matching_ngram_size": NGRAM}
        if options.guesses == "draft":
            draft = self._load(options.draft, options)
            draft.generation_config.num_assistant_tokens = options.k
            draft.generation_config.num_assistant_tokens_schedule = "constant"
            draft.generation_config.assistant_confidence_threshold = 0.0
            return {"assistant_model": draft}
        return {}

    def _count(self, *_: Any) -> None:
        self.steps += 1


if __name__ == "__main__":
    run(Transformers)
