"""What LLMCompiler's claims are computed with: errands, worlds fitted to latencies, planners over HTTP."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")
pytest.importorskip("numba")

from lightwork.agents.profile_model import Profile
from lightwork.agents.worlds.plan_world import PlanWorld, is_held_out
from lightwork.agents.worlds.score import write_plan
from lightwork.claims import Lab, claims_of
from lightwork.claims._agent_overhead import ANSWER, graph_run, small_run
from lightwork.claims._chats import words
from lightwork.claims._errand_programs import Errand
from lightwork.claims._game_of_24 import (
    JUDGED_TOKENS,
    LEVELS,
    THOUGHT_TOKENS,
    Puzzle,
    TreeOfThoughts,
    puzzle,
    shares,
)
from lightwork.claims._planners import DRAFTS, Score, over_http, truth
from lightwork.claims._trained_planner import BATCH, PHASES, Phase, chats, start, train
from lightwork.claims._web_shop import PAGE_S, TreeSearch, bought, searched
from lightwork.claims.llmcompiler import CALLS, COMPILER, MOVIE, PLANS, REACT, World, gpt, llama
from lightwork.models import load
from lightwork.serve.plan import Plan
from lightwork.train.pretrain import Settings


@pytest.mark.parametrize(
    ("errand", "turns"),
    [(Errand(8), (9, 2, 2)), (Errand(2), (3, 2, 2)), (Errand(3, calculates=True), (5, 3, 2))],
)
def test_programs_take_the_turns_that_they_must(errand: Errand, turns: tuple[int, ...]) -> None:
    world = World(1.0, 0.0001)
    spent = [world.spent(program, errand) for program in (REACT, CALLS, COMPILER)]
    assert tuple(one.turns for one in spent) == turns
    for one in spent:  # a turn takes 1.2 s and a search 0.4, whatever is written
        assert one.seconds >= 1.2 * one.turns + 0.4
    assert spent[0].seconds == pytest.approx(
        1.2 * turns[0] + 0.4 * (turns[0] - 1) + 0.0001 * spent[0].usage.completion
    )


def test_what_is_fitted_is_plausible_and_gives_what_it_was_fitted_to() -> None:
    assert 0.3 < gpt().ttft_s < 3.0
    assert 10 < 1 / gpt().token_s < 200
    assert llama().speedup(REACT, COMPILER, MOVIE) == pytest.approx(2.82, rel=0.01)


def test_simulated_claims_but_the_cost_and_the_game_hold() -> None:
    simulated = [one for one in claims_of("llmcompiler") if one.mode == "simulated"]
    missed = {one.title for one in simulated if not one.holds(_value(one.run(Lab())))}
    game = {title for title in missed if "Game of 24" in title}
    assert missed - game <= {"cost of ReAct over LLMCompiler's, Movie"}


def test_plans_of_the_game_ask_as_often_as_the_tree_and_a_level_at_once() -> None:
    asked = sum(states + thoughts for states, thoughts in LEVELS)
    assert asked == 86
    one_each = Profile(ttft_s=1.0)
    assert puzzle(TreeOfThoughts(), one_each) == Puzzle(seconds=asked, asked=asked)
    # of each level: a plan, what is proposed, what is judged, and what is made of it
    assert puzzle(PLANS, one_each) == Puzzle(seconds=4 * len(LEVELS), asked=asked)
    assert tokens_written() == pytest.approx(5479, rel=0.05)


def test_a_tree_search_asks_as_its_log_does_and_plans_open_all_products_at_once() -> None:
    one_each = Profile(ttft_s=1.0)
    asked, pages = 5 + 13, 30
    assert bought(TreeSearch(1), one_each) == pytest.approx(asked + pages * PAGE_S)
    assert bought(TreeSearch(3), one_each) == pytest.approx(3 * (asked + pages * PAGE_S))
    assert searched(one_each) == pytest.approx((0.38 + 0.62 * 30) * (asked + pages * PAGE_S))
    # two plans and what is made of each; a search, then ten pages at once
    assert bought(COMPILER, one_each) == pytest.approx(4 + 2 * PAGE_S)


def tokens_written() -> int:
    """Of a puzzle, as the published log counts them: every judgement three times."""
    return sum(sum(shares(i)) * (THOUGHT_TOKENS + 3 * JUDGED_TOKENS) for i, _ in enumerate(LEVELS))


def _value(found: object) -> float:
    return float(getattr(found, "value", found))  # type: ignore[arg-type]


def test_plans_over_http_are_the_same_with_drafts() -> None:
    rng, world = Random(7), PlanWorld(split="heldout")
    episodes = [world.sample(rng, level) for level in (1, 2, 3, 3)]
    plain, drafted = (over_http(Plan(model="tiny:llama", use=use), episodes) for use in ((), (DRAFTS,)))
    plans = [[result.messages[-1].content for result in results] for results in (plain, drafted)]
    assert plans[0] == plans[1]
    right = [result.answer == truth(episode) for result, episode in zip(plain, episodes, strict=True)]
    assert sum(right) >= 3


def test_the_claims_planner_goes_on_from_the_built_in_one(tmp_path: Path) -> None:
    spec, before = start()
    one = Settings(steps=1, warmup_steps=1)
    train(tmp_path, [Phase(settings=one), Phase(settings=one, shared=0.5, related=0.8, odds=(1, 1))])
    after = load(str(tmp_path))
    assert after.spec.num_params == spec.num_params
    moved = (after.weights.embed - before.embed.detach()).abs().max()
    assert 1e-4 < float(moved) < 1e-2
    episode = PlanWorld(split="heldout").sample(Random(3), 1)
    assert write_plan(after.weights, after.spec, words(), episode.prompt) == episode.gold


def test_its_chats_go_deeper_than_the_built_in_ones_and_name_no_held_out_tool() -> None:
    made = chats(0, PHASES[0])
    rows = [row for _ in range(3) for row in made.batch().tokens_BT.tolist()]
    texts = "".join(words().decode_batch(rows))
    tools = re.findall(r"\n- [a-z]+ ([a-z]+)", texts)
    assert len(tools) >= 8 * 3 * BATCH
    assert not any(map(is_held_out, tools))
    assert re.search(r"question: ([a-z]+ of ){4}e[0-9]", texts), "no chain of four calls"


def test_a_share_is_told_with_its_interval() -> None:
    told = Score(level=2, questions=100, exact=97, answered=100).told("exact")
    assert told == "depth 2: 97 of 100 exact (91.5% to 99.0%)"


def test_what_overhead_is_measured_on_does_its_work() -> None:
    assert graph_run("fanout", 50)() == 50
    assert graph_run("chain", 50)() == 50
    waiting = graph_run("waiting", 50)
    assert (waiting(), waiting()) == (50, 50)
    assert small_run()() == ANSWER
