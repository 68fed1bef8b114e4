"""OpenVINO GenAI: its continuous batching pipeline, for one request and for many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import openvino as ov
import openvino_genai as genai
from worker import Options, Tokens, run

BLOCK = 32


def properties(options: Options) -> dict[str, object]:
    """f32 is exact: float32 in every product and in the cache. The others multiply in bfloat16."""
    exact = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    fast = {"INFERENCE_PRECISION_HINT": "bf16"}
    return {
        "INFERENCE_NUM_THREADS": options.threads,
        "PERFORMANCE_HINT": "LATENCY",
        **(exact if options.weights == "f32" else fast),
    }


class OpenVINO:
    def __init__(self, options: Options) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = 2048
        scheduler.max_num_seqs = options.seqs
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = options.prefixes
        scheduler.num_kv_blocks = options.kv_tokens // BLOCK + options.seqs
        self._pipeline = genai.ContinuousBatchingPipeline(
            options.model, scheduler, "CPU", properties(options)
        )
        self.versions = {
            "openvino-genai": genai.__version__.split("-")[0],
            "openvino": ov.__version__.split("-")[0],
        }

    def generate(self, prompts: Sequence[Tokens], lengths: Sequence[int]) -> list[Tokens]:
        inputs = [ov.Tensor(np.array([p], np.int64)) for p in prompts]
        results = self._pipeline.generate(inputs, [_greedy(n) for n in lengths])
        return [list(result.m_generation_ids[0]) for result in results]


def _greedy(length: int) -> genai.GenerationConfig:
    config = genai.GenerationConfig()
    config.max_new_tokens = length
    config.min_new_tokens = length
    config.do_sample = False
    config.ignore_eos = True
    return config


if __name__ == "__main__":
    run(OpenVINO)
