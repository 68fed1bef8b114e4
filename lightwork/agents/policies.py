"""Who says what a model would say: policies, from which simulated models and teachers take their texts.

A policy is a function of what was asked and of what has been said, and of nothing else. It gives the whole
reply, or, where there is something to decide, what may be said next and how probable each of that is:

    def policy(request, said):                      # always the same reply
        return "Paris"

    def policy(request, said):                      # one decision, then the end
        return () if said else (Choice("yes", 0.7), Choice("no", 0.3))

Calls of tools are part of the text, see `call_text`. The same policy speaks through a ProfileModel, a
simulated engine and a TeacherLM.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from lightwork.agents.chat_model import ChatRequest, ToolCall
from lightwork.decode.sampling import gumbel
from lightwork.errors import UsageError
from lightwork.serve.calls import BEGIN, END

MOST_CHARS = 1 << 20


class Choice(NamedTuple):
    """What may be said next. probability: a weight among the alternatives; their sum need not be 1.

    A model that goes token by token (a TeacherLM) takes alternatives that begin alike together: its most
    probable token need not be that of the most probable alternative.
    """

    text: str
    probability: float = 1.0


Policy = Callable[[ChatRequest, str], str | Sequence[Choice]]
"""(what was asked, what the reply says so far) -> the whole reply, which begins with what was said; or what
may come next, () at the end. A pure function: it is asked again whenever that is convenient."""


def choices(policy: Policy, request: ChatRequest, said: str) -> Sequence[Choice]:
    """What may come next, none of it empty; () at the end. Raises UsageError for a reply that does not begin
    with what was said."""
    answer = policy(request, said)
    if not isinstance(answer, str):
        return [choice for choice in answer if choice.text and choice.probability > 0]
    if not answer.startswith(said):
        raise UsageError(
            f"the policy says {answer[:60]!r}",
            expected=f"a reply that begins with {said[:60]!r}, which has been said",
        )
    return [Choice(answer[len(said) :])] if len(answer) > len(said) else ()


def play(policy: Policy, request: ChatRequest) -> str:
    """What follows request.prefix: the most probable at temperature 0, else drawn with request.seed.

    A policy that never ends is cut after MOST_CHARS characters.
    """
    said = request.prefix
    while len(said) - len(request.prefix) < MOST_CHARS and (found := choices(policy, request, said)):
        said += found[_choose(found, request, len(said))].text
    return said[len(request.prefix) :]


def _choose(found: Sequence[Choice], request: ChatRequest, position: int) -> int:
    if len(found) == 1:
        return 0
    scores = np.log([choice.probability for choice in found])
    if request.temperature > 0:
        scores = scores / request.temperature + gumbel(request.seed, position, np.arange(len(found)))
    return int(scores.argmax())


def call_text(*calls: ToolCall) -> str:
    """Calls as a model writes them."""
    said = [json.dumps({"name": c.name, "arguments": dict(c.arguments)}, ensure_ascii=False) for c in calls]
    return "\n".join(f"{BEGIN}\n{text}\n{END}" for text in said)
