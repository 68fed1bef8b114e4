"""Latency and cost of programs in closed form: what a profile says is what a turn takes."""

from __future__ import annotations

import numpy as np
import pytest
from known_replies import WEATHER, answer, ask, asked, decides, echo, uses_a_tool

from lightwork.agents.chat_model import ToolCall
from lightwork.agents.policies import Choice, play
from lightwork.agents.profile_model import Profile, ProfileModel, four_chars
from lightwork.errors import RangeError, UsageError
from lightwork.runtime.kernel import Kernel

TWENTY = "x" * 80
"""Twenty tokens."""


def twenty(request: object, said: str) -> str:
    return TWENTY


def test_a_turn_takes_its_time_and_money():
    kernel = Kernel()
    profile = Profile(
        ttft_s=1.0, tokens_per_s=10, prompt_s=0.01, overhead_s=0.2, prompt_price=3, completion_price=15
    )
    model = ProfileModel(kernel, profile, twenty)
    [reply] = ask(kernel, model, asked("y" * 40))
    assert reply.text == TWENTY
    assert kernel.now() == pytest.approx(0.2 + 1.0 + 10 * 0.01 + 20 / 10)
    assert (reply.usage.prompt, reply.usage.completion) == (10, 20)
    assert model.usage == reply.usage
    assert model.cost == pytest.approx((10 * 3 + 20 * 15) / 1e6)
    assert model.turns == 1


def test_pieces_come_when_their_tokens_do():
    kernel = Kernel()
    model = ProfileModel(kernel, Profile(ttft_s=1.0, tokens_per_s=10, piece_tokens=5), twenty)

    async def main() -> list[tuple[float, int]]:
        return [(kernel.now(), len(piece)) async for piece in model.stream(asked("hi"))]

    assert kernel.run(main()) == [(pytest.approx(1.0 + 0.5 * i), 20) for i in range(1, 5)]


@pytest.mark.parametrize(("concurrency", "takes_s"), [(0, 3.0), (1, 12.0), (2, 6.0), (3, 6.0)])
def test_so_many_replies_at_once(concurrency: int, takes_s: float):
    kernel = Kernel()
    profile = Profile(ttft_s=1.0, tokens_per_s=10, concurrency=concurrency)
    ask(kernel, ProfileModel(kernel, profile, twenty), *(asked(f"{i}") for i in range(4)))
    assert kernel.now() == pytest.approx(takes_s)


def test_who_polls_notices_later():
    kernel = Kernel()
    ask(kernel, ProfileModel(kernel, Profile(ttft_s=1.03, poll_s=0.1), twenty), asked("hi"))
    assert kernel.now() == pytest.approx(1.1)


def test_jitter_is_that_of_the_seed_and_has_the_spread_that_was_asked_for():
    def times(seed: int) -> list[float]:
        kernel = Kernel(seed=seed)
        model = ProfileModel(kernel, Profile(ttft_s=1.0, jitter=0.3), lambda request, said: "")
        ends = []
        for _ in range(400):
            before_s = kernel.now()
            ask(kernel, model, asked("hi"))
            ends.append(kernel.now() - before_s)
        return ends

    one = times(1)
    assert one == times(1) != times(2)
    assert np.log(one).std() == pytest.approx(0.3, rel=0.15)
    assert np.log(one).mean() == pytest.approx(0.0, abs=0.05)


def test_a_cancelled_turn_counts_with_what_had_come():
    kernel = Kernel()
    model = ProfileModel(kernel, Profile(tokens_per_s=10, concurrency=1), twenty)

    async def main() -> None:
        stream = model.stream(asked("y" * 40))
        await kernel.sleep(0.55)
        assert stream.cancel().text == "x" * 20
        await model.stream(asked("hi")).reply()

    kernel.run(main())
    assert kernel.now() == pytest.approx(0.55 + 2.0)  # its place is free at once
    assert model.usage.completion == 5 + 20


def test_stop_strings_limits_prefixes_and_calls_mean_what_they_do_elsewhere():
    kernel = Kernel()
    model = ProfileModel(kernel, Profile(), echo)
    whole = answer(asked("red"))
    stopped, cut, rest = ask(
        kernel,
        model,
        asked("red", stop=("“",)),
        asked("red", max_tokens=5),
        asked("red", prefix=whole[:9]),
    )
    assert (stopped.text, stopped.reason) == (whole[: whole.index("“")], "stop")
    assert (cut.reason, cut.usage.completion) == ("length", 5)
    assert whole.startswith(cut.text)
    assert rest.text == whole[9:]
    model = ProfileModel(kernel, Profile(), uses_a_tool)
    [reply] = ask(kernel, model, asked("Oslo", tools=(WEATHER,)))
    assert (reply.text, reply.calls) == (
        "Let me look.",
        (ToolCall("call_1", "weather", {"city": "Oslo"}),),
    )
    assert reply.reason == "tool_calls"
    assert reply.usage.prompt > four_chars("Oslo")  # tools are read, too


def test_policies_are_drawn_from_by_seed():
    said = {play(decides, asked("?", temperature=1.0, seed=seed)) for seed in range(60)}
    assert said == {"yes indeed", "yes but", "yesterday", "no"}
    assert play(decides, asked("?")) == "yes but"
    assert len({play(decides, asked("?", temperature=1.0, seed=3)) for _ in range(3)}) == 1


def test_a_policy_that_contradicts_what_was_said_fails_the_reply():
    kernel = Kernel()
    model = ProfileModel(kernel, Profile(), twenty)
    with pytest.raises(UsageError, match="the policy says"):
        ask(kernel, model, asked("hi", prefix="No"))


def test_a_policy_that_never_ends_is_cut():
    kernel = Kernel()
    model = ProfileModel(kernel, Profile(), lambda request, said: [Choice("x" * 100_000)])
    [reply] = ask(kernel, model, asked("hi", max_tokens=10))
    assert reply.text == "x" * 40


def test_a_profile_refuses_what_is_no_time():
    with pytest.raises(RangeError, match="ttft_s"):
        Profile(ttft_s=-1.0)
    with pytest.raises(RangeError, match="tokens_per_s"):
        Profile(tokens_per_s=0.0)
