"""AgentScope's claims: the reference's design in numbers that are known, and what the model is taught."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import islice

import pytest

from lightwork.agents.number_game import NumberGame
from lightwork.agents.number_players import Said, only_number
from lightwork.agents.simulate import simulate
from lightwork.claims import Lab
from lightwork.claims._level_model import BATCH, LEVELS, batches, words
from lightwork.claims._pages import paged
from lightwork.claims._population_page import ANSWERS, MOMENTS, replayed, running
from lightwork.claims.agentscope import CALL_S, a_round_of_the_readme, blocked_s, off, population
from lightwork.errors import LightworkError


def test_blocked_threads_take_turns():
    assert blocked_s(40, 10, 1.0) == pytest.approx(4.0, abs=0.1)
    assert blocked_s(40, 40, 1.0) == pytest.approx(1.0 + 40 * CALL_S, abs=0.01)


def test_a_round_of_the_readme_is_a_second_and_what_the_calls_cost():
    assert a_round_of_the_readme(Lab()) == pytest.approx(1.0 + 100 * CALL_S, abs=0.01)


def test_players_by_rule_have_the_mean_of_theory():
    mixed = ((1, 0.5), (2, 0.25), (float("inf"), 0.25))
    report = simulate(NumberGame.of({"rounds": 4, "population": population(mixed, 400)}))
    assert max(map(abs, off(mixed, report))) < 0.01


def test_the_model_is_taught_what_players_are_told_and_what_they_should_say():
    tokenizer = words()
    for batch in islice(batches("a test"), 4):
        for tokens_T, scored_T in zip(batch.tokens_BT.tolist(), batch.scored_BT.tolist(), strict=True):
            text = tokenizer.decode(tokens_T, skip_special_tokens=False)
            persona, *turns = text.split("<|user|>")
            level = persona.split("- level: ")[1].split("<")[0]
            assert level in LEVELS
            for turn in turns:
                asked, answer = turn.split("<|end|><|assistant|>")
                said = only_number(answer.split("<")[0])
                assert said is not None
                won, _, ratio = asked.rpartition(" at ")
                winning = only_number(won.removesuffix(" won"))
                assert asked == Said(1, Fraction(ratio), winning).text()
                if winning is not None and level != "inf":
                    assert abs(said - winning * Fraction(ratio) ** (int(level) - 1)) <= 100_000
                if level == "inf":
                    assert said == 0
            assert sum(scored_T) == 3 * len(turns)
        assert len(batch.tokens_BT) == BATCH


def test_every_word_of_the_game_is_one_token():
    asked = "<|bos|><|system|>- level: inf<|end|><|user|>37.5 won at 2/3<|end|><|assistant|>"
    assert len(words().encode(asked).ids) == 5 + 1 + 9 + 1


@pytest.mark.multiproc
def test_a_page_is_asked_while_a_population_plays_and_of_its_trace():
    people = json.dumps(population(((1, 1.0),), 60))
    live = running("local", 0, people)
    assert (live.agents, len(live.overviews)) == (61, ANSWERS)
    assert len({answer.told["now_s"] for answer in live.overviews}) == ANSWERS
    saved = replayed(0, people)
    assert (saved.agents, len(saved.overviews)) == (64, MOMENTS + 1)
    busy = [sum(host["busy"] for host in answer.told["hosts"]) for answer in saved.overviews]
    assert max(busy) == 64
    assert saved.worst_s() >= saved.median_s() > 0
    assert saved.most_bytes() > 1000


def test_a_verb_that_has_no_page_is_told():
    with pytest.raises(LightworkError, match="no-such-game"), paged("simulate", "no-such-game", "--page"):
        pass
