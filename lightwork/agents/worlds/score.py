"""How well a model plans: exact plans and executed answers on episodes it has never seen, greedily.

A plan is exact when every token is the model's first choice given the gold tokens before it, which is what
greedy decoding does; only where it is not is the model's own plan written out and executed.

B episodes  T tokens  N scored rows
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor

from lightwork.agents.worlds import Episode
from lightwork.agents.worlds.lessons import chat
from lightwork.agents.worlds.plan_world import PlanWorld
from lightwork.models.spec import ModelSpec
from lightwork.models.weights import Weights
from lightwork.train.pretrain import Batch, predict
from lightwork.train.vocabulary import END

MAX_PLAN_TOKENS = 192
CHUNK = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Counts over questions of one level. tokens: of the gold plans; token_hits: the model's choice too."""

    level: int
    questions: int
    exact: int
    answered: int
    tokens: int
    token_hits: int


def exact_share(
    weights: Weights, spec: ModelSpec, tokenizer: Tokenizer, level: int, questions: int, seed: int
) -> float:
    """The share of exact plans alone, on fresh training catalogues: to watch training by.

    The held-out split is only looked at when training is over.
    """
    rng, world = Random(f"watch {seed} {level}"), PlanWorld(split="train")
    episodes = [world.sample(rng, level) for _ in range(questions)]
    hit_N, owner_N = first_choices(weights, spec, tokenizer, episodes)
    return 1.0 - len(set(owner_N[~hit_N].tolist())) / questions


@torch.no_grad()
def score(
    weights: Weights, spec: ModelSpec, tokenizer: Tokenizer, level: int, questions: int, seed: int
) -> Score:
    """Score on held-out tools. Each question has a catalogue of its own."""
    rng, world = Random(f"score {seed} {level}"), PlanWorld(split="heldout")
    exact = answered = tokens = hits = 0
    for start in range(0, questions, CHUNK):
        episodes = [world.sample(rng, level) for _ in range(min(CHUNK, questions - start))]
        hit_N, owner_N = first_choices(weights, spec, tokenizer, episodes)
        missed = set(owner_N[~hit_N].tolist())
        exact += len(episodes) - len(missed)
        answered += len(episodes) - len(missed)
        for episode in (episodes[i] for i in missed):
            answered += episode.check(write_plan(weights, spec, tokenizer, episode.prompt)).answered
        tokens += len(hit_N)
        hits += int(hit_N.sum())
    return Score(
        level=level, questions=questions, exact=exact, answered=answered, tokens=tokens, token_hits=hits
    )


@torch.no_grad()
def first_choices(
    weights: Weights, spec: ModelSpec, tokenizer: Tokenizer, episodes: Sequence[Episode]
) -> tuple[Tensor, Tensor]:
    """For each gold token: whether it is the model's first choice, bool [N], and whose it is, int64 [N]."""
    batch = _pad([chat(tokenizer, [e])[:2] for e in episodes])
    scores_NV, gold_N = predict(weights, spec, batch)
    return scores_NV.argmax(-1) == gold_N, torch.nonzero(batch.scored_BT[:, 1:])[:, 0]


@torch.no_grad()
def write_plan(weights: Weights, spec: ModelSpec, tokenizer: Tokenizer, prompt: str) -> str:
    """The model's own plan, at most 192 tokens. Recomputes every step: for scoring, not for serving."""
    tokens = tokenizer.encode(f"<|bos|><|user|>{prompt}<|end|><|assistant|>").ids
    num_prompt, end = len(tokens), tokenizer.token_to_id(END)
    for _ in range(MAX_PLAN_TOKENS):
        tokens_BT = torch.tensor([[*tokens, 0]])
        scored_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
        scored_BT[0, -1] = True
        batch = Batch(
            tokens_BT=tokens_BT, positions_BT=torch.arange(len(tokens) + 1)[None], scored_BT=scored_BT
        )
        tokens.append(int(predict(weights, spec, batch)[0].argmax()))
        if tokens[-1] == end:
            break
    return str(tokenizer.decode(tokens[num_prompt:], skip_special_tokens=True))


def wilson(hits: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of a proportion that holds it with 95 % confidence (Wilson, 1927)."""
    p, z2 = hits / total, z * z
    middle = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = z * sqrt(p * (1 - p) / total + z2 / (4 * total * total)) / (1 + z2 / total)
    return max(0.0, middle - half), min(1.0, middle + half)


def _pad(rows: Sequence[tuple[list[int], list[bool]]]) -> Batch:
    width = max(len(tokens) for tokens, _ in rows)
    tokens_BT = torch.zeros(len(rows), width, dtype=torch.int64)
    scored_BT = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, (tokens, scored) in enumerate(rows):
        tokens_BT[i, : len(tokens)] = torch.tensor(tokens)
        scored_BT[i, : len(scored)] = torch.tensor(scored)
    return Batch(
        tokens_BT=tokens_BT, positions_BT=torch.arange(width).expand(len(rows), -1), scored_BT=scored_BT
    )
