"""Proposers beside plain decoding on the built-in pair: the same texts, and how many tokens a step brings."""

from __future__ import annotations

import pytest

pytest.importorskip("numba")

from lightwork.claims.speculate import PLAIN, PROPOSERS, TARGET, TASKS, Run, compare, count, prompts
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


def test_a_question_that_was_asked_before_has_its_answer_in_the_prompt(counted: dict[str, dict[str, Run]]):
    asked, texts = prompts("copy"), counted[PLAIN]["copy"].texts
    copied = [" ".join(map(str, t)) in " ".join(map(str, p)) for p, t in zip(asked, texts, strict=True)]
    assert sum(copied) >= 0.9 * len(copied)
