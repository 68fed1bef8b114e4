"""A policy inside the engine: what comes out is known in closed form, whatever the engine does with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from math import exp, log
from random import Random
from typing import Any

import numpy as np
import openai
import pytest
from known_replies import ENDS, WEATHER, answer, ask, asked, decides, echo, uses_a_tool
from scipy.stats import chisquare

from lightwork.agents.chat_model import ChatRequest, Message, ToolCall
from lightwork.agents.conversation_text import read_conversation
from lightwork.agents.engine_model import EngineModel, open_model
from lightwork.agents.policies import Choice
from lightwork.agents.teacher import TeacherLM, TokenPool, open_teacher
from lightwork.errors import CapacityError, InvariantError, SpecError
from lightwork.kernels.rows import Rows
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Trace
from lightwork.serve.engine import Engine
from lightwork.serve.fleet import Fleet
from lightwork.serve.http.main import BackgroundServer, load
from lightwork.serve.plan import Plan

BLOCKS = 26
"""Of 16 tokens, of 4 bytes each: room for two conversations."""
TEXTS = ["red", "What is next to the house?", "one two three", "x" * 40]


def opened(policy: Any = echo, **settings: Any) -> tuple[Kernel, EngineModel]:
    kernel = Kernel(trace=Trace("test"))
    return kernel, open_model(Plan(max_len=1024, max_seqs=8, **settings), kernel, policy)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use": ["Sarathi(chunk=16)"]},
        {"use": ["PrefillFirst"]},
        {"use": ["Ngram(k=4)"]},
        {"use": ["HostMemory(gb=0.001)"], "kv_bytes": BLOCKS * 64},
        {"kv_bytes": BLOCKS * 64, "prefix_cache": False},
        {"depth": 2},
        {"use": ["PrefillDecode(prefill=1, decode=2)"]},
        {"use": ["Replicas(copies=2)", "Sarathi(chunk=32)"]},
    ],
    ids=str,
)
def test_the_greedy_text_is_the_policys_whatever_serves_it(settings: dict[str, Any]):
    kernel, model = opened(**settings)
    requests = [asked(text, max_tokens=300) for text in [*TEXTS, *TEXTS]]
    replies = ask(kernel, model, *requests)
    assert [reply.text for reply in replies] == [answer(request) for request in requests]
    assert {reply.reason for reply in replies} == {"stop"}
    kernel.run(model.engine.drained())
    for engine in model.engine.engines if isinstance(model.engine, Fleet) else [model.engine]:
        assert engine.steps
        assert engine.kv.free == engine.kv.total
    assert kernel.trace is not None
    happened = {span.kind for span in kernel.trace.spans}
    assert ("preempt" in happened) == ("kv_bytes" in settings)
    assert ("pull" in happened) == ("PrefillDecode" in str(settings))


def test_drafts_of_a_repeated_text_are_accepted():
    kernel, model = opened(use=["Ngram(k=4)"])
    [reply] = ask(kernel, model, asked("one two one two"))
    assert reply.text == answer(asked("one two one two"))
    assert isinstance(model.engine, Engine)
    assert model.engine.steps < reply.usage.completion  # its second half is its first


def test_a_second_turn_finds_the_first_in_the_prefix_cache():
    kernel, model = opened()
    [first] = ask(kernel, model, asked("hello"))
    more = (Message("user", "hello"), first.message(), Message("user", "and then?"))
    [second] = ask(kernel, model, ChatRequest(more))
    assert second.text == answer(ChatRequest(more))
    assert second.usage.cached >= first.usage.prompt


def test_sampled_texts_have_the_policys_frequencies():
    kernel, model = opened(decides)
    num = 600
    replies = ask(kernel, model, *(asked("?", temperature=1.0, seed=seed) for seed in range(num)))
    seen = Counter(reply.text for reply in replies)
    assert seen.keys() == ENDS.keys()
    fit = chisquare([seen[text] for text in ENDS], [num * p for p in ENDS.values()])
    assert fit.pvalue > 0.01, seen


def test_temperature_sharpens_each_decision():
    kernel, model = opened(lambda request, said: () if said else (Choice("a", 0.6), Choice("b", 0.4)))
    num = 400
    replies = ask(kernel, model, *(asked("?", temperature=0.5, seed=seed) for seed in range(num)))
    share = 0.6**2 / (0.6**2 + 0.4**2)
    seen = Counter(reply.text for reply in replies)
    assert chisquare([seen["a"], seen["b"]], [num * share, num * (1 - share)]).pvalue > 0.01


def test_log_probabilities_are_those_of_the_decisions():
    kernel, model = opened(decides)
    requests = [asked("?", temperature=1.0, seed=seed, logprobs=3) for seed in range(40)]
    for reply in ask(kernel, model, *requests):
        total = sum(pick.logprob for pick in reply.picks if pick.logprob is not None)
        assert exp(total) == pytest.approx(ENDS[reply.text], rel=1e-5)
    [greedy] = ask(kernel, model, asked("?", logprobs=5))
    assert greedy.text == "yes but"
    first = greedy.picks[0]
    assert sum(exp(logprob) for _, logprob in first.top) == pytest.approx(1.0)
    assert first.logprob == first.top[0][1] == pytest.approx(log(0.7), rel=1e-5)  # yes and yesterday


@pytest.mark.parametrize("seed", range(4))
def test_any_tree_of_decisions_is_followed_with_its_probabilities(seed: int):
    """Alternatives begin with letters of their own, so that tokens decide what they do."""

    def grows(request: ChatRequest, said: str) -> list[Choice]:
        rng = Random(f"{seed} {said}")
        if len(said) > 120:
            return []
        words = ["".join(rng.choices("abc –é“\n", k=rng.randint(0, 12))) for _ in range(rng.randint(1, 4))]
        return [Choice(f"{letter}{word}", rng.random()) for letter, word in zip("WXYZ", words, strict=False)]

    def log_probability(text: str) -> float:
        said, total = "", 0.0
        while found := grows(asked("?"), said):
            [taken] = [choice for choice in found if text[len(said) :].startswith(choice.text)]
            total += log(taken.probability / sum(choice.probability for choice in found))
            said += taken.text
        assert said == text
        return total

    kernel, model = opened(grows, kv_bytes=BLOCKS * 64, use=["Ngram(k=3)"])
    requests = [asked("?", temperature=1.0, seed=i, logprobs=1, max_tokens=300) for i in range(12)]
    replies = ask(kernel, model, *requests)
    assert len({reply.text for reply in replies}) > 1
    for reply in replies:
        total = sum(pick.logprob for pick in reply.picks if pick.logprob is not None)
        assert total == pytest.approx(log_probability(reply.text), rel=1e-4, abs=1e-4)


def test_a_text_that_others_began_is_gone_on_with():
    kernel, model = opened(decides)
    for prefix in ("ye", "yes", "No"):
        some = (asked("?", prefix=prefix, temperature=1.0, seed=seed) for seed in range(40))
        ends = {text.removeprefix(prefix) for text in ENDS if text.startswith(prefix)} or {""}
        assert {reply.text for reply in ask(kernel, model, *some)} == ends


def test_stop_strings_and_max_tokens_end_a_text():
    kernel, model = opened()
    whole = answer(asked("red"))
    stopped, cut = ask(kernel, model, asked("red", stop=("naïve", "“")), asked("red", max_tokens=7))
    assert stopped.text == whole[: whole.index("naïve")]
    assert (stopped.reason, cut.reason) == ("stop", "length")
    assert cut.usage.completion == 7
    assert whole.startswith(cut.text)


def test_a_conversation_is_read_back_as_it_was_said():
    call = ToolCall("call_1", "weather", {"city": "Oslo"})
    messages = (
        Message("system", "Be brief."),
        Message("user", "Weather?\nIn Oslo – please"),
        Message("assistant", "Let me look.", (call,)),
        Message("tool", "rain", call_id="call_1"),
    )
    request = ChatRequest(messages, (WEATHER,))
    _, model = opened()
    read, said = read_conversation(model.tokenizer.decode(model.prompt(request)) + "It i")
    assert read == request
    assert said == "It i"


@pytest.mark.parametrize(
    "cut", [["ye"], ["y", "e"], ["yes", " "], ["yes ind", "e"], ["x", "yes"], ["n", "o"]]
)
def test_logits_depend_on_nothing_but_the_tokens(cut: list[str]):
    """Of a reply that others wrote in tokens of their own, token by token and all at once."""
    warm, cold = TeacherLM(decides), TeacherLM(decides)
    ids = warm.tokenizer.encode("<|user|>?<|end|><|assistant|>")
    ids += [token for piece in cut for token in warm.tokenizer.encode(piece)]
    rows = Rows.of_text(np.array(ids, np.int64), 16)
    step_by_step = warm.logits(rows, warm.new_kv(4, 16))
    rows.scored = rows.scored[-1:]
    np.testing.assert_array_equal(cold.logits(rows, cold.new_kv(4, 16)), step_by_step[-1:])


def test_what_is_no_conversation_is_ended():
    model = TeacherLM(echo)
    assert read_conversation("just text") == (None, "")
    tokens = np.array(model.tokenizer.encode("just text"), np.int64)
    rows = Rows.of_text(tokens, 16)
    logits_NV = model.logits(rows, model.new_kv(1, 16))
    assert {int(row.argmax()) for row in logits_NV} == model.tokenizer.eos_ids


def test_a_block_that_holds_no_token_is_noticed():
    model, pool = TeacherLM(echo), TokenPool(2, 16)
    rows = Rows.of_text(np.array(model.tokenizer.encode("<|user|>hi<|end|><|assistant|>"), np.int64), 16)
    model.logits(rows, pool)
    pool.discard(range(1))
    rows.index, rows.known = rows.index + 3, rows.known + 3  # as if three tokens more were there
    with pytest.raises(InvariantError, match="no token"):
        model.logits(rows, pool)


def test_what_needs_weights_is_refused():
    with pytest.raises(SpecError, match="needs weights"):
        opened(use=["Quant(bits=8)"])
    with pytest.raises(SpecError, match="max_len"):
        open_teacher(echo, Plan(max_len=1 << 20), Kernel())


def test_an_error_of_the_policy_ends_its_reply_with_it():
    def fails(request: ChatRequest, said: str) -> str:
        raise ValueError("no idea")

    kernel, model = opened(fails)
    with pytest.raises(ValueError, match="no idea"):
        ask(kernel, model, asked("hi"))


def test_a_prompt_that_can_never_fit_is_refused():
    kernel, model = opened()
    with pytest.raises(CapacityError):
        ask(kernel, model, asked("x" * 5000))


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    loaded = load(Plan(max_len=1024, max_seqs=8), name="teacher", opener=partial(open_teacher, both))
    with BackgroundServer(loaded) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none") as made:
        yield made


def both(request: ChatRequest, said: str) -> Any:
    return uses_a_tool(request, said) if request.tools else decides(request, said)


def test_the_server_streams_the_policys_text(client: openai.OpenAI):
    events = client.chat.completions.create(
        model="teacher", messages=[{"role": "user", "content": "?"}], stream=True, temperature=0
    )
    pieces = [event.choices[0].delta.content or "" for event in events if event.choices]
    assert "".join(pieces) == "yes but"
    assert len([piece for piece in pieces if piece]) > 1


def test_the_server_makes_calls_of_the_policys_and_takes_their_answers(client: openai.OpenAI):
    messages: list[Any] = [{"role": "user", "content": "Oslo"}]
    tools: list[Any] = [{"type": "function", "function": WEATHER}]
    first = client.chat.completions.create(model="teacher", messages=messages, tools=tools).choices[0]
    assert first.finish_reason == "tool_calls"
    [call] = first.message.tool_calls or ()
    assert call.type == "function"
    assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Oslo"}')
    messages += [first.message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    last = client.chat.completions.create(model="teacher", messages=messages, tools=tools).choices[0]
    assert last.message.content == "It is rain."
