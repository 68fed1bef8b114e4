"""CTranslate2: static batches, requests of like length together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import ctranslate2
from worker import Options, Tokens, run

COMPUTE = {"f32": "float32", "8bit": "int8_float32"}
STATIC_BATCH = 16


class CTranslate2:
    def __init__(self, options: Options) -> None:
        self._generator = ctranslate2.Generator(
            options.model,
            device="cpu",
            compute_type=COMPUTE[options.weights],
            inter_threads=1,
            intra_threads=options.threads,
        )
        words = json.loads((Path(options.model) / "vocabulary.json").read_text(encoding="utf-8"))
        self._words: list[str] = words
        self.versions = {"ctranslate2": ctranslate2.__version__}

    def generate(self, prompts: Sequence[Tokens], lengths: Sequence[int]) -> list[Tokens]:
        order = sorted(range(len(prompts)), key=lambda i: (lengths[i], len(prompts[i])))
        outputs: list[Tokens] = [[] for _ in prompts]
        for start in range(0, len(order), STATIC_BATCH):
            group = order[start : start + STATIC_BATCH]
            longest = max(lengths[i] for i in group)
            results = self._generator.generate_batch(
                [[self._words[t] for t in prompts[i]] for i in group],
                max_length=longest,
                min_length=longest,
                sampling_topk=1,
                include_prompt_in_result=False,
            )
            for i, result in zip(group, results, strict=True):
                outputs[i] = result.sequences_ids[0][: lengths[i]]
        return outputs


if __name__ == "__main__":
    run(CTranslate2)
