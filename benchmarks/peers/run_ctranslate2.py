"""CTranslate2: static batches, requests of like length together."""

from __future__ import annotations

import json
import time
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
            produced = self._together([prompts[i] for i in group], max(lengths[i] for i in group))
            for i, tokens in zip(group, produced, strict=True):
                outputs[i] = tokens[: lengths[i]]
        return outputs

    def offered(
        self, prompts: Sequence[Tokens], lengths: Sequence[int], at_s: Sequence[float]
    ) -> list[float]:
        """Those that have come while a batch ran are the next one."""
        begin_s, ended_s, first = time.perf_counter(), [0.0] * len(prompts), 0
        while first < len(prompts):
            now_s = time.perf_counter() - begin_s
            group = [i for i in range(first, len(prompts)) if at_s[i] <= now_s][:STATIC_BATCH]
            if not group:
                time.sleep(at_s[first] - now_s)
                continue
            self._together([prompts[i] for i in group], max(lengths[i] for i in group))
            for i in group:
                ended_s[i] = time.perf_counter() - begin_s
            first = group[-1] + 1
        return ended_s

    def _together(self, prompts: Sequence[Tokens], length: int) -> list[Tokens]:
        """All of one batch to one length."""
        results = self._generator.generate_batch(
            [[self._words[t] for t in prompt] for prompt in prompts],
            max_length=length,
            min_length=length,
            sampling_topk=1,
            include_prompt_in_result=False,
        )
        return [result.sequences_ids[0] for result in results]


if __name__ == "__main__":
    run(CTranslate2)
