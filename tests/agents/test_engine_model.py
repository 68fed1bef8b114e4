"""The engine as a model of programs: for real, in virtual time, and the same text as everywhere else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from known_replies import WEATHER, answer, ask, asked, decides, echo, uses_a_tool

from lightwork import LLM
from lightwork.agents.chat_model import ChatRequest, Message, Reply, ToolCall
from lightwork.agents.engine_model import EngineModel, open_model
from lightwork.agents.policies import call_text
from lightwork.decode.sampling import Sampling
from lightwork.errors import NotReadyError, RangeError, SpecError, UsageError
from lightwork.runtime.clock import WallClock
from lightwork.runtime.futures import CancelledError
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Trace
from lightwork.serve.engine import Engine
from lightwork.serve.plan import Plan

SIM = Plan(model="shape:llama-3-8b", on="sim:h100")


@pytest.fixture(scope="module")
def real() -> Iterator[tuple[Kernel, EngineModel]]:
    kernel = Kernel(WallClock())
    model = open_model(Plan(max_len=512), kernel)
    yield kernel, model
    model.close()


def test_texts_are_those_of_the_model_offline(real: tuple[Kernel, EngineModel]):
    kernel, model = real
    conversation = [{"role": "user", "content": "What is next to the house?"}]
    with LLM(Plan(max_len=512)) as llm:
        for how in (Sampling(temperature=0.0), Sampling(temperature=1.5, seed=7)):
            [offline] = llm.generate([conversation], max_tokens=30, sampling=how)
            request = asked(
                conversation[0]["content"], max_tokens=30, temperature=how.temperature, seed=how.seed
            )
            [reply] = ask(kernel, model, request)
            assert reply.text == offline.text
            assert [pick.token for pick in reply.picks] == offline.tokens
            assert reply.usage.prompt == offline.prompt_tokens


def test_a_reply_gone_on_with_is_the_whole_one(real: tuple[Kernel, EngineModel]):
    kernel, model = real
    [whole] = ask(kernel, model, asked("tools: a b c", max_tokens=24))
    tokens = [pick.token for pick in whole.picks]
    begun = {n: model.tokenizer.decode(tokens[:n]) for n in range(1, 20)}
    # where the tokenizer writes that text as the model did
    n = max(n for n, text in begun.items() if model.tokenizer.encode(text) == tokens[:n])
    [rest] = ask(kernel, model, asked("tools: a b c", max_tokens=24 - n, prefix=begun[n]))
    assert begun[n] + rest.text == whole.text
    assert [pick.token for pick in rest.picks] == tokens[n:]


def test_strict_tools_hold_the_model_to_their_schemas(real: tuple[Kernel, EngineModel]):
    pytest.importorskip("llguidance")
    kernel, model = real
    strict = {**WEATHER, "strict": True}
    replies = ask(
        kernel,
        model,
        *(asked("?", tools=(strict,), temperature=2.0, seed=s, max_tokens=60) for s in range(6)),
    )
    for reply in replies:
        assert all(call.name == "weather" and not call.raw for call in reply.calls)
    with pytest.raises(UsageError, match="begun"):
        ask(kernel, model, asked("?", tools=(strict,), prefix="Hm"))


def test_a_policy_that_keeps_to_a_strict_tool_says_what_it_would():
    pytest.importorskip("llguidance")
    kernel = Kernel()
    model = open_model(Plan(max_len=1024), kernel, uses_a_tool)
    free, held = ask(
        kernel, model, *(asked("Oslo", tools=({**WEATHER, "strict": strict},)) for strict in (False, True))
    )
    assert held.calls == free.calls == (ToolCall("call_1", "weather", {"city": "Oslo"}),)
    assert held.text == free.text


def test_impossible_values_fail_when_the_reply_is_read(real: tuple[Kernel, EngineModel]):
    kernel, model = real
    stream = model.stream(asked("hi", temperature=-1.0))
    with pytest.raises(RangeError, match="temperature"):
        kernel.run(stream.reply())


def virtual(policy: Any, plan: Plan = SIM) -> tuple[Kernel, EngineModel]:
    kernel = Kernel(trace=Trace("test"))
    return kernel, open_model(plan, kernel, policy)


def test_a_simulated_model_says_what_its_policy_does_and_takes_its_time():
    kernel, model = virtual(echo)
    [short, long] = ask(kernel, model, asked("red", max_tokens=5), asked("red"))
    assert long.text == answer(asked("red"))
    assert long.text.startswith(short.text)
    assert short.reason == "length"
    first_s = kernel.now()
    assert first_s > 0
    ask(kernel, model, *(asked(f"red {i}") for i in range(8)))
    assert kernel.now() - first_s < 3 * first_s  # together, not one after the other


def test_several_simulated_engines_are_one_model():
    plan = Plan(model="shape:llama-3-8b", on="sim:h100x2", use=["PrefillDecode(prefill=1, decode=1)"])
    kernel, model = virtual(echo, plan)
    requests = [asked(f"red {i}") for i in range(6)]
    assert [reply.text for reply in ask(kernel, model, *requests)] == [answer(r) for r in requests]


def test_an_error_of_the_policy_fails_the_reply_and_leaves_nothing_behind():
    def fails(request: ChatRequest, said: str) -> str:
        raise ValueError("no idea")

    kernel, model = virtual(fails)
    with pytest.raises(ValueError, match="no idea"):
        ask(kernel, model, asked("?"))
    assert model.engine.num_unfinished == 0


def test_simulated_runs_of_one_program_are_equal():
    def transcript() -> tuple[float, list[Reply]]:
        kernel, model = virtual(decides)
        requests = [asked("?", temperature=1.0, seed=seed) for seed in range(20)]
        return (kernel.now(), ask(kernel, model, *requests))

    assert transcript() == transcript()


def test_a_simulated_model_needs_a_policy():
    with pytest.raises(SpecError, match="says nothing"):
        open_model(SIM, Kernel())


def test_calls_have_the_same_ids_in_every_run():
    kernel, model = virtual(uses_a_tool)
    [first] = ask(kernel, model, asked("Oslo", tools=(WEATHER,)))
    assert first.text == "Let me look."
    assert first.calls == (ToolCall("call_1", "weather", {"city": "Oslo"}),)
    assert first.reason == "tool_calls"
    more = (
        Message("user", "Oslo"),
        first.message(),
        Message("tool", "rain", call_id="call_1"),
        Message("assistant", "It is rain."),
        Message("user", "Rome"),
    )
    [second] = ask(kernel, model, ChatRequest(more, (WEATHER,)))
    assert second.calls == (ToolCall("call_2", "weather", {"city": "Rome"}),)


def test_without_tools_a_call_is_text():
    kernel, model = virtual(uses_a_tool)
    [reply] = ask(kernel, model, asked("Oslo"))
    assert reply.calls == ()
    assert reply.text.endswith("</tool_call>")


def test_arguments_that_are_no_object_are_kept_as_written():
    kernel, model = virtual(
        lambda request, said: '<tool_call>\n{"name": "weather", "arguments": {"city": ]}</tool_call>'
    )
    [reply] = ask(kernel, model, asked("Oslo", tools=(WEATHER,)))
    [call] = reply.calls
    assert call.arguments == {}
    assert call.raw.startswith('{"city": ]')


@pytest.mark.parametrize("cut", range(0, 70, 3))
def test_a_call_that_the_prefix_began_is_whole(cut: int):
    kernel, model = virtual(uses_a_tool)
    whole = uses_a_tool(asked("Oslo"), "")
    [reply] = ask(kernel, model, asked("Oslo", tools=(WEATHER,), prefix=whole[:cut]))
    assert reply.calls == (ToolCall("call_1", "weather", {"city": "Oslo"}),)
    shown = "Let me look."
    assert shown.startswith(whole[:cut][: len(shown)])
    assert reply.text == shown[cut:]


def test_pieces_are_streamed_and_the_calls_are_not_among_them():
    kernel, model = virtual(uses_a_tool)

    async def main() -> list[str]:
        return [piece async for piece in model.stream(asked("Oslo", tools=(WEATHER,)))]

    pieces = kernel.run(main())
    assert len(pieces) > 1
    assert "".join(pieces) == "Let me look."


def test_a_cancelled_reply_frees_its_blocks_and_keeps_what_had_come():
    kernel, model = virtual(echo)

    async def main() -> Reply:
        stream = model.stream(asked("red"))
        async for _ in stream:
            break
        reply = stream.cancel()
        assert stream.cancel() == reply
        return reply

    reply = kernel.run(main())
    assert isinstance(model.engine, Engine)
    kernel.run(model.engine.drained())
    assert model.engine.kv.free == model.engine.kv.total
    assert reply.text
    assert answer(asked("red")).startswith(reply.text)
    assert reply.usage.completion == len(reply.picks) > 0


def test_replies_under_way_fail_when_the_engine_ends():
    kernel, model = virtual(echo)

    async def main() -> None:
        stream = model.stream(asked("red"))
        async for _ in stream:
            break
        model.close()
        await stream.reply()

    with pytest.raises(NotReadyError):
        kernel.run(main())


def test_a_caller_that_is_cancelled_can_cancel_its_reply():
    kernel, model = virtual(echo)

    async def caller() -> None:
        stream = model.stream(asked("red"))
        try:
            await stream.reply()
        except CancelledError:
            stream.cancel()
            raise

    async def main() -> None:
        task = kernel.spawn(caller())
        await kernel.sleep(1e-3)
        kernel.cancel(task)
        await model.engine.drained()

    kernel.run(main())
    assert model.engine.num_unfinished == 0


def test_call_text_is_what_is_read_back():
    calls = [ToolCall("call_1", "weather", {"city": 'Åse "x" <b>'}), ToolCall("call_2", "weather", {})]
    kernel, model = virtual(lambda request, said: call_text(*calls))
    [reply] = ask(kernel, model, asked("Oslo", tools=(WEATHER,)))
    assert reply.calls == tuple(calls)
