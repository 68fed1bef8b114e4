"""Every family gives the logits of transformers, however its tokens are cut into steps."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightwork import models
from lightwork.decode.proposers import Draft
from lightwork.memory.kv import KVCache
from lightwork.serve.rows import build_rows
from lightwork.serve.schedulers import Chunk, Step
from lightwork.serve.sequence import Request
from lightwork.serve.sequence import Sequence as Seq
from lightwork.testing import FAMILIES

Make = Callable[..., Path]
TOLERANCE = 1e-4
ROPES = {
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "linear": {"rope_type": "linear", "rope_theta": 5_000.0, "factor": 2.0},
}
CASES: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in FAMILIES),
    ("llama", {"rope_parameters": ROPES["llama3"]}),
    ("llama", {"rope_parameters": ROPES["linear"], "attention_bias": True, "mlp_bias": True}),
    ("llama", {"tie_word_embeddings": True}),
    ("qwen3_moe", {"norm_topk_prob": True, "mlp_only_layers": [1]}),
    ("mixtral", {"sliding_window": 16}),
]
TEXT = np.random.default_rng(0).integers(0, 256, 90).tolist()


def reference(folder: Path, tokens: list[int]) -> np.ndarray:
    """transformers' logits after each token."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
        with torch.no_grad():
            return model(torch.tensor([tokens])).logits[0].numpy()


class Bench:
    """A model with a paged cache whose blocks are handed out in a scattered order, and steps by hand."""

    def __init__(self, folder: Path, block_size: int = 4) -> None:
        self.model = models.load(str(folder))
        self.kv = KVCache(160, block_size)
        self.pool = self.model.new_kv(160, block_size)
        held = [100 + i for i in range(20)]
        for seq in held:
            self.kv.attach(seq, [0])
            self.kv.reserve(seq, 7 + seq % 5)
        for seq in held[::2] + held[1::2]:
            self.kv.release(seq)

    def seq(self, i: int, tokens: list[int]) -> Seq:
        request = Request(prompt=tuple(tokens), max_tokens=8, prompt_logprobs=0)
        self.kv.attach(i, ())
        return Seq(i, request, request.sampling, None, 0.0, list(tokens), len(tokens))

    def run(self, chunks: list[Chunk], drafts: list[Draft] | None = None) -> list[np.ndarray]:
        """Logits of all rows of each chunk."""
        step = Step(chunks=chunks, drafts=drafts or [])
        for i, chunk in enumerate(chunks):
            assert self.kv.reserve(chunk.seq.id, chunk.end + len(step.draft(i))) is not None
        rows, first = build_rows(step, self.kv)
        logits = self.model.forward(rows, self.pool).numpy()
        for chunk in chunks:
            self.kv.commit(chunk.seq.id, chunk.seq.tokens, chunk.end)
        return np.split(logits, first[1:])


@pytest.mark.peer
@pytest.mark.parametrize(
    ("family", "config"), CASES, ids=lambda x: x if isinstance(x, str) else "-".join(x) or "plain"
)
def test_logits_equal_transformers(checkpoint: Make, family: str, config: dict[str, Any]) -> None:
    folder = checkpoint(family, **config)
    bench = Bench(folder)
    texts = [TEXT, TEXT[5:60], TEXT[40:41], TEXT[20:54]]
    expected = [reference(folder, text) for text in texts]
    whole = bench.run([Chunk(bench.seq(0, texts[0]), 0, len(texts[0]))])[0]
    np.testing.assert_allclose(whole, expected[0], atol=TOLERANCE, rtol=0)
    seqs = [bench.seq(10 + i, text) for i, text in enumerate(texts)]
    done = [0] * len(seqs)
    got: list[list[np.ndarray]] = [[] for _ in seqs]
    for size in (1, 7, 1, 20, 1, 1, 90):
        chunks = [
            Chunk(seq, at, min(size + i, seq.known - at))
            for i, (seq, at) in enumerate(zip(seqs, done, strict=True))
            if at < seq.known
        ]
        for chunk, logits in zip(chunks, bench.run(chunks), strict=True):
            got[chunk.seq.id - 10].append(logits)
            done[chunk.seq.id - 10] = chunk.end
    for parts, right in zip(got, expected, strict=True):
        np.testing.assert_allclose(np.concatenate(parts), right, atol=TOLERANCE, rtol=0)


@pytest.mark.peer
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_a_draft_tree_see_their_own_branch(checkpoint: Make, family: str) -> None:
    folder = checkpoint(family)
    bench = Bench(folder)
    seq = bench.seq(0, TEXT[:40])
    draft = Draft((7, 8, 9, 10, 11), (-1, -1, 0, 2, 1))
    (logits,) = bench.run([Chunk(seq, 0, 40)], [draft])
    for node, path in enumerate([[7], [8], [7, 9], [7, 9, 10], [8, 11]]):
        expected = reference(folder, TEXT[:40] + path)[-1]
        np.testing.assert_allclose(logits[40 + node], expected, atol=TOLERANCE, rtol=0)
