"""A model that is only a latency and a price: what a program takes in time and money, without computing.

    gpt = Profile(ttft_s=1.15, tokens_per_s=55, prompt_price=0.5, completion_price=1.5)
    model = ProfileModel(kernel, gpt, policy)
    ...
    model.usage, model.cost, model.turns

Works on any clock; on a virtual one a thousand turns take milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lightwork.agents.chat_model import ChatRequest, ChatStream, Usage
from lightwork.agents.policies import Policy
from lightwork.runtime.kernel import Kernel


def four_chars(text: str) -> int:
    """Tokens of a text if one is four characters, as it is in English."""
    return -(-len(text) // 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What one turn takes.

    ttft_s: until the first token. tokens_per_s: from then on. prompt_s: per prompt token, beside ttft_s.
    concurrency: replies at once, others wait in line; 0: any number. jitter: standard deviation of the
    logarithm of a turn's speed, 0: none. overhead_s: of the framework, before each turn. poll_s: a reply is
    noticed at the next multiple of it after the turn began; 0: at once. prompt_price, completion_price:
    money for a million tokens. piece_tokens: tokens that come together; 0: the whole reply at its end.
    """

    ttft_s: float = 0.0
    tokens_per_s: float = float("inf")
    prompt_s: float = 0.0
    concurrency: int = 0
    jitter: float = 0.0
    overhead_s: float = 0.0
    poll_s: float = 0.0
    prompt_price: float = 0.0
    completion_price: float = 0.0
    piece_tokens: int = 1


class ProfileModel:
    """usage, cost, turns: of all replies so far; a cancelled one counts with what had come. count: tokens of
    a text."""

    name: str
    usage: Usage
    cost: float
    turns: int

    def __init__(
        self,
        kernel: Kernel,
        profile: Profile,
        policy: Policy,
        *,
        name: str = "profile",
        count: Callable[[str], int] = four_chars,
    ) -> None: ...

    def stream(self, request: ChatRequest) -> ChatStream: ...
