"""OpenVINO GenAI: its continuous batching pipeline, for one request and for many, with guesses or without."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import openvino as ov
import openvino_genai as genai
from worker import Options, Tokens, run

BLOCK = 32
NGRAM = 6
"""The longest n-gram that is looked up, as lightwork's `Ngram` does."""


def properties(options: Options) -> dict[str, object]:
    """f32 is exact: float32 in every product and in the cache. The others multiply in bfloat16."""
    exact = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    fast = {"INFERENCE_PRECISION_HINT": "bf16"}
    return {
        "INFERENCE_NUM_THREADS": options.threads,
        "PERFORMANCE_HINT": "LATENCY",
        **(exact if options.weights == "f32" else fast),
    }


def guessing(options: Options) -> dict[str, object]:
    """Properties of a pipeline that guesses."""
    if options.guesses == "draft":
        return {"draft_model": genai.draft_model(options.draft, "CPU", **properties(options))}
    return {"prompt_lookup": True} if options.guesses == "lookup" else {}


class OpenVINO:
    def __init__(self, options: Options) -> None:
        self._options = options
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = 2048
        scheduler.max_num_seqs = options.seqs
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = options.prefixes
        scheduler.num_kv_blocks = options.kv_tokens // BLOCK + options.seqs
        self._pipeline = genai.ContinuousBatchingPipeline(
            options.model, scheduler, "CPU", {**properties(options), **guessing(options)}
        )
        self.steps = 0
        self.versions = {
            "openvino-genai": genai.__version__.split("-")[0],
            "openvino": ov.__version__.split("-")[0],
        }

    def generate(self, prompts: Sequence[Tokens], lengths: Sequence[int]) -> list[Tokens]:
        inputs = [ov.Tensor(np.array([p], np.int64)) for p in prompts]
        if self._options.guesses:
            return [self._alone(one, n) for one, n in zip(inputs, lengths, strict=True)]
        results = self._pipeline.generate(inputs, [self._greedy(n) for n in lengths])
        return [list(result.m_generation_ids[0]) for result in results]

    def _alone(self, prompt: ov.Tensor, length: int) -> Tokens:
        """One request, each step of the pipeline counted: in all of them the model passes once."""
        handle = self._pipeline.add_request(self.steps, prompt, self._greedy(length))
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            self.steps += 1
        return list(handle.read_all()[0].generated_ids)

    def _greedy(self, length: int) -> genai.GenerationConfig:
        config = genai.GenerationConfig()
        config.max_new_tokens = length
        config.min_new_tokens = length
        config.do_sample = False
        config.ignore_eos = True
        if self._options.guesses:
            config.num_assistant_tokens = self._options.k
        if self._options.guesses == "lookup":
            config.max_ngram_size = NGRAM
        return config


if __name__ == "__main__":
    run(OpenVINO)
