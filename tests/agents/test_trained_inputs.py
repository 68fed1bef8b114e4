"""What models that have learnt PlanWorld are asked: to the token what they learnt, by either program."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

from lightwork.agents.chat_model import ChatRequest, Message
from lightwork.agents.context import Context, Result
from lightwork.agents.dependencies import Provenance
from lightwork.agents.layering import layered
from lightwork.agents.policies import Policy
from lightwork.agents.profile_model import Profile, ProfileModel
from lightwork.agents.programs import Program
from lightwork.agents.programs.dta import Dta
from lightwork.agents.programs.llm_compiler import LlmCompiler
from lightwork.agents.replies import message_dict
from lightwork.agents.tool import Toolbox
from lightwork.agents.trajectories import Trajectory
from lightwork.agents.world_tools import world_tools
from lightwork.agents.worlds import Episode
from lightwork.agents.worlds.plan_world import SYLLABLES, PlanWorld
from lightwork.agents.worlds.turns import WORDS as TURN_WORDS
from lightwork.agents.worlds.turns import Comparisons, messages, serial
from lightwork.models import resolve
from lightwork.models.tokenizer import Tokenizer
from lightwork.runtime.kernel import Kernel
from lightwork.train.vocabulary import build_tokenizer, save_tokenizer

TOKENS_OF_PLANS = "23671f87024b007a03368266f833461367ba9bfb0c55f0bff4aec0300e2c1f95"
TOKENS_OF_TURNS = "b71da38a6e922a0be8344f9d9334fb5bed61174e34d7254b391bf38a699d8f0d"
"""Digests of all that is asked, as it was when both programs had a flag of their own for such models."""


def asked(program: Program, one: Episode, *replies: str) -> tuple[list[ChatRequest], Result]:
    """All that the program asks a model that says these, one after another."""
    kernel, requests = Kernel(), list[ChatRequest]()

    def says(request: ChatRequest, said: str) -> str:
        if not said:
            requests.append(request)
        return replies[len(requests) - 1]

    policy: Policy = says
    model = ProfileModel(kernel, Profile(), policy)
    context = Context(kernel, {"": model}, Toolbox.of(kernel, world_tools(one)), trained=True)
    result: Result = kernel.run(program.run(context, one.question))
    return requests, result


def plans() -> Iterator[tuple[list[ChatRequest], Episode]]:
    """As `lightwork claims llmcompiler` draws its questions, a few of each depth."""
    rng, world = Random("planners 0"), PlanWorld(split="heldout")
    for level in (1, 2, 3, 4):
        for _ in range(8):
            one = world.sample(rng, level)
            yield asked(LlmCompiler(), one, one.gold)[0], one


def turns() -> Iterator[tuple[list[ChatRequest], Episode, Trajectory]]:
    """As `lightwork claims dta_llama` does."""
    rng, world = Random("asked 0"), Comparisons(world=PlanWorld(split="heldout"))
    for i in range(24):
        one = world.sample(rng, 2 + i % 2)
        found = Kernel().run(layered(serial(one), Provenance()))
        if isinstance(found, Trajectory):
            said = [m.content for m in messages(found, one.tools) if m.role == "assistant"]
            yield asked(Dta(), one, *said)[0], one, found


def digest(tokenizer: Tokenizer, requests: Iterator[ChatRequest]) -> str:
    found = hashlib.sha256()
    for request in requests:
        text = tokenizer.chat_text([message_dict(message) for message in request.messages])
        bare = replace(request, messages=(), max_tokens=0)
        assert bare == ChatRequest((), max_tokens=0)
        found.update(f"{tokenizer.encode(text)} {request.max_tokens}\n".encode())
    return found.hexdigest()


def test_a_plan_is_asked_for_as_in_training() -> None:
    for [request], one in plans():
        assert request.messages == (Message("user", one.prompt),)
    tokenizer = Tokenizer(resolve("tiny:llama"))
    assert digest(tokenizer, (request for requests, _ in plans() for request in requests)) == TOKENS_OF_PLANS


def test_turns_are_asked_for_as_in_training(tmp_path: Path) -> None:
    drawn = [*turns()]
    assert len(drawn) > 16
    for requests, one, trajectory in drawn:
        said = [(m.role, m.content) for m in messages(trajectory, one.tools)]
        first, *rest = requests[-1].messages
        assert first == Message("user", one.prompt)
        assert [(m.role, m.content) for m in rest] == said[:-1]
        assert len(requests) == len(trajectory.turns) + 1
    save_tokenizer(build_tokenizer(TURN_WORDS, SYLLABLES), tmp_path, 1024)
    asked_for = (request for requests, _, _ in drawn for request in requests)
    assert digest(Tokenizer(tmp_path), asked_for) == TOKENS_OF_TURNS
