"""The model in this process: the texts of one prompt at a time; all or nothing when one is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import lightwork
from lightwork import LLM, Plan
from lightwork.decode.constraints import Constraint
from lightwork.decode.sampling import Sampling
from lightwork.errors import CapacityError, ConstraintError, RangeError

GREEDY = Sampling(temperature=0.0)
PROMPTS = ["red is", "What is next to the house?", "one two three"]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM() as opened:
        yield opened


def test_prompts_together_give_the_texts_of_each_alone(llm: LLM):
    together = llm.generate(PROMPTS, max_tokens=12, sampling=GREEDY)
    alone = [llm.generate([p], max_tokens=12, sampling=GREEDY)[0] for p in PROMPTS]
    assert [c.text for c in together] == [c.text for c in alone]
    assert all(c.tokens and c.reason in ("stop", "length") for c in together)
    assert [c.prompt_tokens for c in together] == [
        len(llm.tokenizer.encode(p, add_special=True)) for p in PROMPTS
    ]


def test_guesses_change_nothing_but_are_told(llm: LLM):
    with LLM(Plan(use=["Ngram(k=4)"])) as guessing:
        prompt = "a b c d e a b c d e a b c"
        ours, theirs = (m.generate([prompt], max_tokens=40, sampling=GREEDY)[0] for m in (guessing, llm))
    assert ours.tokens == theirs.tokens
    assert theirs.drafted == 0


def test_token_ids_are_a_prompt_and_logprobs_are_told(llm: LLM):
    ids = llm.tokenizer.encode(PROMPTS[0], add_special=True)
    how = Sampling(temperature=0.0, logprobs=2)
    by_text, by_ids = (llm.generate([p], max_tokens=4, sampling=how)[0] for p in (PROMPTS[0], ids))
    assert by_text == by_ids
    assert all(pick.logprob is not None and len(pick.top) == 2 for pick in by_text.picks)


def test_each_prompt_has_a_seed_of_its_own(llm: LLM):
    hot = [Sampling(temperature=3.0, seed=seed) for seed in (1, 2)]
    one, other = llm.generate([PROMPTS[0]] * 2, max_tokens=30, sampling=hot)
    assert one.tokens != other.tokens
    assert llm.generate([PROMPTS[0]], max_tokens=30, sampling=hot[1])[0].tokens == other.tokens


def test_a_stop_string_ends_a_text_and_is_not_part_of_it(llm: LLM):
    whole = llm.generate([PROMPTS[0]], max_tokens=12, sampling=GREEDY)[0].text
    stop = whole[3:5]
    cut = llm.generate([PROMPTS[0]], max_tokens=12, sampling=GREEDY, stop=[stop])[0]
    assert cut.text == whole[: whole.index(stop)]
    assert cut.reason == "stop"


def test_a_conversation_is_written_as_the_template_says(llm: LLM):
    messages = [{"role": "user", "content": "say hello"}]
    ids = llm.tokenizer.chat(messages)
    answer, same = llm.generate([messages, ids], max_tokens=8, sampling=GREEDY)
    assert answer.tokens == same.tokens
    assert answer.prompt_tokens == len(ids)


def test_a_prompt_that_cannot_be_served_stops_all_before_the_first_step(llm: LLM):
    steps = len(llm.trace.spans)
    with pytest.raises(CapacityError, match="makes"):
        llm.generate(["short", "long " * 50_000], max_tokens=4)
    with pytest.raises(RangeError, match="2 samplings for 1 prompts"):
        llm.generate(["short"], sampling=[GREEDY, GREEDY])
    assert len(llm.trace.spans) == steps


def test_texts_are_what_a_constraint_says_or_none_is_written(llm: LLM):
    pytest.importorskip("llguidance")
    said = llm.generate(PROMPTS, max_tokens=9, constraint=Constraint(kind="choice", text='["left", "right"]'))
    assert {c.text for c in said} <= {"left", "right"}
    steps = len(llm.trace.spans)
    with pytest.raises(ConstraintError, match="unclosed group"):
        llm.generate(PROMPTS, max_tokens=9, constraint=Constraint(kind="regex", text="(a"))
    assert len(llm.trace.spans) == steps


def test_more_prompts_than_the_queue_holds_are_served_in_turn(llm: LLM):
    with LLM(Plan(max_waiting=2)) as narrow:
        ours = narrow.generate(PROMPTS, max_tokens=5, sampling=GREEDY)
    assert [c.text for c in ours] == [c.text for c in llm.generate(PROMPTS, max_tokens=5, sampling=GREEDY)]


def test_the_package_has_nothing_else_at_its_top():
    with pytest.raises(AttributeError, match="no attribute 'LMM'"):
        lightwork.LMM  # noqa: B018
