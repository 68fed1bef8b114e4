"""Proposers beside plain decoding on the built-in pair: the same texts, and how many tokens a step brings."""

from __future__ import annotations

import pytest

pytest.importorskip("numba")

from lightwork.claims.speculate import PLAIN, PROPOSERS, TARGET, TASKS, Run, compare, count
from lightwork.errors import SpecError
from lightwork.models import resolve
from lightwork.models.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def counted() -> dict[str, dict[str, Run]]:
    return {use: count(use) for use in (PLAIN, *PROPOSERS)}


@pytest.mark.parametrize("use", PROPOSERS)
def test_every_proposer_gives_the_texts_of_plain_decoding(use: str, counted: dict[str, dict[str, Run]]):
    for task in TASKS:
        assert counted[use][task].texts == counted[PLAIN][task].texts
        assert counted[use][task].steps < counted[PLAIN][task].steps


def test_plain_decoding_has_a_token_per_step(counted: dict[str, dict[str, Run]]):
    for run in counted[PLAIN].values():
        assert (run.tokens_per_step, run.drafted) == (1.0, 0)


def test_texts_end_by_themselves(counted: dict[str, dict[str, Run]]):
    ends = Tokenizer(resolve(TARGET)).eos_ids
    assert all(text[-1] in ends for run in counted[PLAIN].values() for text in run.texts)


def test_a_question_that_was_asked_before_is_answered_from_the_prompt(counted: dict[str, dict[str, Run]]):
    """So looking tokens up brings twice as many a step as where the question is new."""
    copied, new = (counted["Ngram(k=4)"][task].tokens_per_step for task in ("copy", "ordinary"))
    assert copied > 2 * new > 2.0


def test_where_there_is_something_to_copy_the_cascade_is_ahead_of_both_its_parts(
    counted: dict[str, dict[str, Run]],
):
    figures = {use: {task: run.tokens_per_step for task, run in of.items()} for use, of in counted.items()}
    cascade, draft, lookup = (figures[use] for use in ("Cascade()", "DraftModel(k=4)", "Ngram(k=4)"))
    assert cascade["copy"] > max(draft["copy"], lookup["copy"])
    assert cascade["ordinary"] >= draft["ordinary"]


def test_what_guesses_no_tokens_is_refused():
    with pytest.raises(SpecError, match=r"Sarathi\(chunk=256\) guesses no tokens"):
        compare(["Sarathi(chunk=256)"])
