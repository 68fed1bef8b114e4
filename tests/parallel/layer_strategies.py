"""What the processes of test_layer_parallel import."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import numpy as np
import torch

from lightwork.kernels.rows import Rows
from lightwork.models import load
from lightwork.models.layer_plan import LayerPlan
from lightwork.models.model import KVPool
from lightwork.parallel.layer_parallel import Attending, layer_parallel

BLOCK = 16
EXACT = LayerPlan.spread(9, 1)


def rows_of(tokens: Sequence[int], start: int) -> Rows:
    """Those from `start` on, the last one scored."""
    at = np.arange(start, len(tokens))
    return Rows(
        tokens=np.array(tokens[start:]),
        positions=at,
        slots=at,
        seqs=np.zeros(len(at), np.int32),
        index=at,
        ancestors=np.zeros(len(at), np.uint64),
        known=np.array([len(tokens)]),
        tables=np.arange(-(-len(tokens) // BLOCK), dtype=np.int32)[None],
        scored=np.array([len(at) - 1]),
    )


def written(kv: KVPool, num: int) -> int:
    """A sum over the keys and values of the first tokens, in all layers."""
    return crc32(torch.stack((kv.keys_LTGD, kv.values_LTGD))[:, :, :num].numpy().tobytes())


@torch.inference_mode()
async def drafts(me: int, n: int, prompt: Sequence[int], plan: LayerPlan, k: int, num: int):
    """Drafts of k tokens, all but the last of which are taken to be right; sums over keys and values behind
    each draft and behind the exact pass that begins the next."""
    model = load("tiny:llama")
    kv = model.new_kv(8, BLOCK)
    tokens, exact, sums = [*prompt], 0, []
    for _ in range(num):
        computed, known = exact, len(tokens)
        for i in range(k):
            layers = Attending(model, rows_of(tokens, computed), kv)
            x_Rd = await layer_parallel(me, n, layers.embed(), plan if i else EXACT, layers)
            computed = len(tokens)
            tokens.append(int(layers.logits(x_Rd).argmax()))
            if i == 0:
                exact = known
                sums.append(written(kv, exact))
        sums.append(written(kv, len(tokens) - 1))
        del tokens[-1:]
    return tokens, sums
