"""Train a block drafter for an encoder-decoder (GAD): k masks behind a prefix are filled in one pass.

It learns what the verifier puts out rather than the reference (sequence-level distillation; Kim and Rush,
2016). The more masks of a block it gets wrong, the more of their tokens it is shown in place of the masks (a
glancing model; Qian et al., 2021), and it is judged on the rest.

B pairs  T target tokens  W = T + k decoder inputs  V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from lightwork.models.seq2seq import Seq2Seq, scores
from lightwork.models.spec import ModelSpec
from lightwork.train.pretrain import Progress, Settings, optimise
from lightwork.train.seq2seq import Pairs, causal, read_and_write


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """k: masks of a block. start, end, mask: tokens that outputs begin and end with, and a masked one.
    glance: the share of wrongly filled masks whose tokens are shown."""

    k: int
    start: int
    end: int
    mask: int
    glance: float = 0.3


@torch.no_grad()
def greedy_outputs(weights: Seq2Seq, spec: ModelSpec, pairs: Pairs, blocks: Blocks) -> Pairs:
    """The pairs with what the model puts out greedily in place of the targets, which only have to be guesses.

    All positions are decoded at once from the guess, again and again until nothing changes (Jacobi
    decoding; Santilli et al., 2023): then each token is the greedy one behind those before it. An output that
    does not end within the targets' width is cut off there.
    """
    tokens_BT, lengths_B = pairs.tokens_BT.clone(), pairs.lengths_B.clone()
    left = torch.arange(len(tokens_BT))
    while len(left):
        guesses = Pairs(
            sources_BS=pairs.sources_BS[left],
            source_lengths_B=pairs.source_lengths_B[left],
            tokens_BT=tokens_BT[left],
            lengths_B=lengths_B[left],
        )
        greedy_BT = scores(weights, causal(weights, spec, guesses, blocks.start)).argmax(-1)
        ended_BT = (greedy_BT == blocks.end).cumsum(1) > 0
        tokens_BT[left] = greedy_BT.masked_fill(ended_BT, blocks.end)
        lengths_B[left] = (~ended_BT).sum(1) + ended_BT.any(1)
        left = left[(tokens_BT[left] != guesses.tokens_BT).any(1)]
    return replace(pairs, tokens_BT=tokens_BT, lengths_B=lengths_B)


def train_block_drafter(
    weights: Seq2Seq,
    spec: ModelSpec,
    outputs: Iterable[Pairs],
    settings: Settings,
    blocks: Blocks,
    *,
    seed: int = 0,
) -> Iterator[Progress]:
    """Train in place, one step per batch, and report each. outputs: of the verifier."""
    rng = Generator().manual_seed(seed)

    def loss(pairs: Pairs) -> Tensor:
        return F.cross_entropy(*fill(weights, spec, pairs, blocks, rng))

    return optimise(weights.tensors(), loss, outputs, settings)


def fill(
    weights: Seq2Seq, spec: ModelSpec, pairs: Pairs, blocks: Blocks, rng: Generator
) -> tuple[Tensor, Tensor]:
    """Logits [N, V] for the masks of one block of each pair, at a random place, and their tokens [N]."""
    num, width = pairs.tokens_BT.shape
    known_B1 = 1 + (torch.rand(num, 1, generator=rng) * pairs.lengths_B[:, None]).long()
    inputs_BW = F.pad(F.pad(pairs.tokens_BT, (0, blocks.k - 1), value=blocks.end), (1, 0), value=blocks.start)
    at_W = torch.arange(width + blocks.k)
    masked_BW = (at_W >= known_B1) & (at_W < known_B1 + blocks.k)
    visible_B1W = (at_W < known_B1 + blocks.k)[:, None]
    masked_inputs_BW = inputs_BW.masked_fill(masked_BW, blocks.mask)
    with torch.no_grad():
        guesses_BW = scores(
            weights, read_and_write(weights, spec, pairs, masked_inputs_BW, visible_B1W)
        ).argmax(-1)
    shown_BW = _glanced(masked_BW, guesses_BW != inputs_BW, blocks.glance, rng)
    judged_BW = masked_BW & ~shown_BW
    hidden_BWd = read_and_write(
        weights, spec, pairs, torch.where(judged_BW, blocks.mask, inputs_BW), visible_B1W
    )
    return scores(weights, hidden_BWd[judged_BW]), inputs_BW[judged_BW]


def _glanced(masked_BW: Tensor, wrong_BW: Tensor, share: float, rng: Generator) -> Tensor:
    """Random masks of each block, as many as a share of those filled wrongly."""
    num_B1 = (share * (masked_BW & wrong_BW).sum(1, keepdim=True)).long()
    order_BW = torch.rand(masked_BW.shape, generator=rng).masked_fill(~masked_BW, 2.0)
    return order_BW.argsort(1).argsort(1) < num_B1
