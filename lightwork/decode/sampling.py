"""The choice of a token as a pure function: the same logits, seed and position give the same token, anywhere.

    pick = argmax(filtered logits / temperature + gumbel(seed, position))

Adding Gumbel noise and taking the argmax draws from softmax(logits / temperature) (the Gumbel-max trick;
Gumbel, 1954). The noise is counter-based: a hash of (seed, position, token id), so nothing is remembered
between tokens, and batching, preemption, speculation and replay cannot change a text. The hash is
SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014) evaluated at a
counter.

V: vocabulary size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import InvariantError, RangeError

Floats = NDArray[np.floating[Any]]

_GAMMA = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


class Pick(NamedTuple):
    """One chosen token, with what the caller asked to know about the choice.

    A NamedTuple because one is made for every token: a third of the time of a frozen dataclass.

    logprob: natural log of the model's own probability of the token (before temperature, penalties and
    filters). Under a constraint, of its share of what the tokens allowed there have, as vLLM tells it: the
    probabilities of several choices sum to 1.
    top: (token, logprob) of the most probable tokens, most probable first.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens of one sequence are chosen. Defaults: the model's distribution as it is.

    temperature: 0 takes the most probable token. top_k: 0 keeps all. logprobs: None reports none; n reports
    the token's and the n most probable ones. Penalties follow their usual definitions: repetition over
    prompt and output (Keskar et al., "CTRL", 2019), frequency and presence over the output. plain: neither
    penalties nor biases change the model's scores.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    plain: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _within("temperature", self.temperature, 0.0, 100.0)
        _within("top_k", self.top_k, 0, 1 << 31)
        _within("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _within("min_p", self.min_p, 0.0, 1.0)
        _within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _within("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _within("repetition_penalty", self.repetition_penalty, 0.0, 100.0, open_low=True)
        for _, bias in self.logit_bias:
            _within("logit_bias", bias, -100.0, 100.0)
        if self.logprobs is not None:
            _within("logprobs", self.logprobs, 0, 20)
        object.__setattr__(self, "plain", not self.penalised and not self.logit_bias)

    @property
    def penalised(self) -> bool:
        return bool(self.frequency_penalty or self.presence_penalty or self.repetition_penalty != 1.0)


def usual(config: Mapping[str, Any], seed: int = 0) -> Sampling:
    """How a model is sampled if nobody says: as its generation_config.json does. Raises RangeError."""

    def told(name: str, otherwise: float) -> float:
        value = config.get(name)
        return otherwise if value is None else float(value)

    return Sampling(
        temperature=0.0 if config.get("do_sample") is False else told("temperature", 1.0),
        top_k=max(0, int(told("top_k", 0))),
        top_p=told("top_p", 1.0),
        min_p=told("min_p", 0.0),
        repetition_penalty=told("repetition_penalty", 1.0),
        seed=seed,
    )


def _within(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    if not (low < value if open_low else low <= value) or not value <= high:
        raise RangeError(
            f"{name} is {value}", expected=f"{'>' if open_low else '>='} {low:g} and <= {high:g}"
        )


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def noise_key(seed: int, position: int) -> int:
    """Where the noise of one position begins, 64 bits; token ids count on from there."""
    return _mix((_mix((seed * _GAMMA + 1) & _MASK) + position * _GAMMA) & _MASK)


def gumbel(seed: int, position: int, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Standard Gumbel noise for token ids at one position: a pure function of its arguments."""
    key = noise_key(seed, position)
    with np.errstate(over="ignore"):
        x = np.uint64(key) + ids.astype(np.uint64) * np.uint64(_GAMMA)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    uniform = ((x >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return -np.log(-np.log(uniform))


def log_softmax(logits_V: Floats) -> NDArray[np.float64]:
    x = logits_V.astype(np.float64)
    x -= x.max()
    return np.asarray(x - np.log(np.exp(x).sum()))


def pick(
    logits_V: Floats, how: Sampling, position: int, prompt: Sequence[int], output: Sequence[int]
) -> Pick:
    """Choose the token at `position`, the number of tokens before it.

    logits_V: the model's scores after the last known token. prompt, output: the tokens so far, read by
    penalties. Raises InvariantError if the logits are not finite anywhere a token could be chosen.
    """
    scores_V = _adjust(logits_V, how, prompt, output)
    token = int(scores_V.argmax())
    if not np.isfinite(scores_V[token]):
        raise InvariantError(
            f"the model's scores at position {position} are not finite",
            expected="finite logits",
            fix="check the weights",
        )
    if how.temperature > 0.0:
        token = _sample(scores_V, how, position)
    if how.logprobs is None:
        return Pick(token)
    return describe(logits_V, token, how.logprobs)


def describe(logits_V: Floats, token: int, num_top: int) -> Pick:
    """A pick of `token` with its log-probability and those of the num_top most probable tokens; fewer where
    no others are possible."""
    logprobs_V = log_softmax(logits_V)
    order = np.lexsort((np.arange(len(logprobs_V)), -logprobs_V))[:num_top] if num_top else ()
    possible = ((int(i), float(logprobs_V[i])) for i in order if np.isfinite(logprobs_V[i]))
    return Pick(token, float(logprobs_V[token]), tuple(possible))


def _adjust(logits_V: Floats, how: Sampling, prompt: Sequence[int], output: Sequence[int]) -> Floats:
    if how.plain:
        return logits_V
    x = logits_V.astype(np.float64)
    if how.repetition_penalty != 1.0:
        seen = np.unique(np.fromiter((*prompt, *output), np.int64))
        x[seen] = np.where(x[seen] > 0, x[seen] / how.repetition_penalty, x[seen] * how.repetition_penalty)
    if output and (how.frequency_penalty or how.presence_penalty):
        ids, counts = np.unique(np.fromiter(output, np.int64), return_counts=True)
        x[ids] -= how.frequency_penalty * counts + how.presence_penalty
    for token, bias in how.logit_bias:
        x[token] += bias
    return x


def _sample(scores_V: Floats, how: Sampling, position: int) -> int:
    z = scores_V.astype(np.float64) / how.temperature
    ids = np.arange(len(z))
    if 0 < how.top_k < len(z):
        ids = ids[z >= np.partition(z, -how.top_k)[-how.top_k]]
    if how.top_p < 1.0:
        ids = _nucleus(z, ids, how.top_p)
    if how.min_p > 0.0:
        ids = ids[z[ids] >= z[ids].max() + np.log(how.min_p)]
    return int(ids[(z[ids] + gumbel(how.seed, position, ids)).argmax()])


def _nucleus(z: NDArray[np.float64], ids: NDArray[np.int64], top_p: float) -> NDArray[np.int64]:
    """The fewest most probable ids whose probabilities reach top_p (Holtzman et al., 2019)."""
    order = ids[np.argsort(-z[ids], kind="stable")]
    p = np.exp(z[order] - z[order[0]])
    p /= p.sum()
    keep = int(np.searchsorted(np.cumsum(p), top_p)) + 1
    return np.sort(order[:keep])
