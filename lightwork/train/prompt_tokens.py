"""Prompt tokens of a frozen model, trained to say what it would say some tokens on.

From "Hardware-Aware Parallel Prompt Decoding for Memory-Efficient Acceleration of LLM Inference", 2024
(section on training). Texts are the model's own greedy continuations. Behind a token of such a text stand m
prompt tokens; the i-th sees the text up to there and the prompts before it, and learns the distribution that
the model itself has i tokens later (Kullback-Leibler, weighted 0.8**i). A prompt may be v virtual tokens:
what they say is averaged, and the j-th of each see none but the j-th of those before. Texts are cut behind
each of their own tokens rather than behind one at random: all cuts share one pass over the text, whose keys
and values need no gradient.

B sequences  T tokens  P cuts, or m v tokens of prompts  m prompts  R ranks  d hidden  H heads
G key-value heads  D head size  V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lightwork.errors import UsageError
from lightwork.models.spec import ModelSpec
from lightwork.models.transformer import Attend, forward, logits, normalise, run_layers
from lightwork.models.weights import Weights
from lightwork.train.pretrain import Batch, Progress, Settings, dense_attention, optimise

FADE = 0.8
"""What the loss of a prompt counts, over that of the one before it."""
RANKS = 10
SETTINGS = Settings(steps=400, learning_rate=2e-2, warmup_steps=1, floor=0.0, weight_decay=0.0)


@dataclass(frozen=True, slots=True)
class Ahead:
    """guesses, own: logits [B, P, m, V] of the prompts behind each cut, and of the model i tokens later.

    said: what it said there, [B, P, m]. there: bool [B, P, m], whether the text goes on so far.
    """

    guesses: Tensor
    own: Tensor
    said: Tensor
    there: Tensor


def initial_prompts(weights: Weights, num: int, seed: int) -> Tensor:
    """Embeddings [num, d] of random tokens, to be trained."""
    rng = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(weights.embed), (num,), generator=rng)
    return weights.embed[chosen].detach().clone().requires_grad_(True)


def train_prompts(
    prompts_Pd: Tensor,
    weights: Weights,
    spec: ModelSpec,
    batches: Iterable[Batch],
    settings: Settings = SETTINGS,
    *,
    virtual: int = 1,
) -> Iterator[Progress]:
    """Train the embeddings in place; the weights stay as they are.

    batches: `scored_BT` marks the tokens that the model said itself, greedily. virtual: tokens of a prompt.
    """

    def loss(batch: Batch) -> Tensor:
        ahead = look_ahead(weights, spec, prompts_Pd, batch, virtual)
        each_BPm = F.kl_div(
            ahead.guesses.log_softmax(-1), ahead.own.log_softmax(-1), reduction="none", log_target=True
        ).sum(-1)
        counts_BPm = ahead.there * FADE ** torch.arange(len(prompts_Pd) // virtual)
        return (each_BPm * counts_BPm).sum() / counts_BPm.sum()

    return optimise([prompts_Pd], loss, batches, settings)


def look_ahead(
    weights: Weights, spec: ModelSpec, prompts_Pd: Tensor, batch: Batch, virtual: int = 1
) -> Ahead:
    """What prompts of so many virtual tokens say behind every token whose next two the model said itself, and
    what it says later.

    Raises UsageError if there are none, or for texts longer than a sliding window.
    """
    tokens_BT, num = batch.tokens_BT, len(prompts_Pd) // virtual
    if spec.windowed and tokens_BT.shape[1] + num > (spec.sliding_window or 0):
        raise UsageError(
            f"texts of {tokens_BT.shape[1]} tokens",
            expected=f"at most {spec.sliding_window}, the window of the model's attention, less {num}",
            fix="shorter ones",
        )
    cuts_BP, is_cut_BP = _cuts(batch.scored_BT)
    later_m = torch.arange(1, num + 1)
    later_BPm = cuts_BP[:, :, None] + later_m
    ends = tokens_BT.shape[1] - 1
    said_BPm = (later_BPm + 1).clamp(max=ends)
    lines_B11 = torch.arange(len(tokens_BT))[:, None, None]
    there_BPm = is_cut_BP[:, :, None] & (later_BPm < ends) & batch.scored_BT[lines_B11, said_BPm]
    kept: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        hidden_BTd = _of_text(weights, spec, tokens_BT, kept)
        own = logits(weights, hidden_BTd[lines_B11, later_BPm.clamp(max=ends)])
    x_Rd = prompts_Pd.expand(*cuts_BP.shape, -1, -1).reshape(-1, spec.hidden_size)
    at_R = later_BPm.reshape(-1).repeat_interleave(virtual)
    if weights.positions is not None:
        x_Rd = x_Rd + F.embedding(at_R, weights.positions)
    x_Rd = run_layers(weights.layers, spec, x_Rd, at_R, _behind(kept, cuts_BP, num, virtual))
    guesses = logits(weights, normalise(weights, spec, x_Rd)).view(*later_BPm.shape, virtual, -1).mean(3)
    return Ahead(guesses, own, tokens_BT[lines_B11, said_BPm], there_BPm)


def accuracy(
    prompts_Pd: Tensor, weights: Weights, spec: ModelSpec, batches: Iterable[Batch], *, virtual: int = 1
) -> NDArray[np.float64]:
    """[m, R]: how often each rank of each prompt's guesses is what the model said, where those of the
    prompts before it were among the R; falling by rank.

    Raises UsageError for texts too short for a guess of the last prompt.
    """
    num = len(prompts_Pd) // virtual
    hits_mR, tried_m = np.zeros((num, RANKS)), np.zeros(num)
    for batch in batches:
        with torch.no_grad():
            ahead = look_ahead(weights, spec, prompts_Pd, batch, virtual)
        said_BPm1 = ahead.said[..., None]
        rank_BPm = (ahead.guesses > ahead.guesses.gather(-1, said_BPm1)).sum(-1)
        found_BP = torch.ones_like(ahead.there[..., 0])
        for i in range(num):
            tried_BP = ahead.there[..., i] & found_BP
            found_BP = tried_BP & (rank_BPm[..., i] < RANKS)
            tried_m[i] += int(tried_BP.sum())
            hits_mR[i] += np.bincount(rank_BPm[..., i][found_BP].numpy(), minlength=RANKS)
    if not tried_m.all():
        raise UsageError(
            f"no text tells what {num} prompts are worth",
            expected=f"continuations of {num + 2} tokens or more",
            fix="longer ones",
        )
    return np.array([_falling(hits_R / tried) for hits_R, tried in zip(hits_mR, tried_m, strict=True)])


def as_batches(
    texts: Sequence[tuple[Sequence[int], int]], batch_size: int, rounds: int = 1
) -> Iterator[Batch]:
    """Texts and how many of their tokens were given, so many at a time; `rounds` times in the same order."""
    for _ in range(rounds):
        for first in range(0, len(texts), batch_size):
            some = texts[first : first + batch_size]
            longest = max(len(tokens) for tokens, _ in some)
            tokens_BT = torch.tensor([[*tokens, *[0] * (longest - len(tokens))] for tokens, _ in some])
            at_T = torch.arange(longest)
            scored = [(at_T >= given) & (at_T < len(tokens)) for tokens, given in some]
            yield Batch(
                tokens_BT=tokens_BT,
                positions_BT=at_T.expand_as(tokens_BT),
                scored_BT=torch.stack(scored),
            )


def _cuts(scored_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Behind which tokens of each text the next two are its own, [B, P], and which of these numbers count."""
    is_cut_BT = scored_BT[:, 1:-1] & scored_BT[:, 2:]
    most = int(is_cut_BT.sum(1).max())
    if not most:
        raise UsageError(
            "no text has two tokens that the model said itself",
            expected="its own continuations",
            fix="longer ones",
        )
    cuts_BP = is_cut_BT.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    return cuts_BP, is_cut_BT.gather(1, cuts_BP)


def _of_text(
    weights: Weights, spec: ModelSpec, tokens_BT: Tensor, kept: list[tuple[Tensor, Tensor]]
) -> Tensor:
    """Hidden states [B, T, d] of the texts; keys and values [B, T, G, D] of each layer are kept."""
    num, length = tokens_BT.shape
    attend = dense_attention(num, spec)

    def keep(layer: int, q_RHD: Tensor, k_RGD: Tensor, v_RGD: Tensor) -> Tensor:
        kept.append((_lines(k_RGD, num), _lines(v_RGD, num)))
        return attend(layer, q_RHD, k_RGD, v_RGD)

    at_R = torch.arange(length).repeat(num)
    return forward(weights, spec, tokens_BT.reshape(-1), at_R, keep).view(num, length, -1)


def _behind(kept: Sequence[tuple[Tensor, Tensor]], cuts_BP: Tensor, prompts: int, virtual: int) -> Attend:
    """Attention of prompts: to the text up to their cut, and to those before them behind the same cut, each
    virtual token to its like."""
    (num, cuts), length, each = cuts_BP.shape, kept[0][0].shape[1], prompts * virtual
    cut_BR = cuts_BP.repeat_interleave(each, 1)
    nth_R = torch.arange(each).repeat(cuts)
    chain_R = torch.arange(cuts).repeat_interleave(each) * virtual + nth_R % virtual
    own_RR = (chain_R[:, None] == chain_R) & (nth_R[:, None] >= nth_R)
    text_T = torch.arange(length)
    mask_BRK = torch.cat((text_T <= cut_BR[..., None], own_RR.expand(num, -1, -1)), -1)

    def attend(layer: int, q_RHD: Tensor, k_RGD: Tensor, v_RGD: Tensor) -> Tensor:
        q, k, v = (_lines(x, num) for x in (q_RHD, k_RGD, v_RGD))
        k, v = torch.cat((kept[layer][0], k), 1), torch.cat((kept[layer][1], v), 1)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_BRK[:, None], enable_gqa=True)
        return out.transpose(1, 2).reshape(q_RHD.shape)

    return attend


def _lines(x: Tensor, num: int) -> Tensor:
    """[R, G, D] of `num` sequences as [B, R / B, G, D]."""
    return x.reshape(num, -1, *x.shape[1:])


def _falling(shares_R: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest that never rise: neighbours that do are averaged (pool adjacent violators)."""
    pools: list[tuple[float, int]] = []
    for share in shares_R:
        pools.append((float(share), 1))
        while len(pools) > 1 and pools[-1][0] > pools[-2][0]:
            (a, num_a), (b, num_b) = pools[-2:]
            pools[-2:] = [((a * num_a + b * num_b) / (num_a + num_b), num_a + num_b)]
    return np.array([mean for mean, num in pools for _ in range(num)])
