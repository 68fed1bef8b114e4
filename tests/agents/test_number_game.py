"""The number game: what is played is what theory says, and the same wherever it is played."""

from __future__ import annotations

import json
import os
import signal
from fractions import Fraction
from math import inf
from secrets import token_hex

import numpy as np
import pytest
from numpy.typing import NDArray

from lightwork.agents.chat_model import ChatRequest, ChatStream, Message, Reply
from lightwork.agents.engine_model import open_model
from lightwork.agents.number_game import RATIOS, NumberGame, Round, play
from lightwork.agents.number_models import ModelAt, SharedModel, level_policy
from lightwork.agents.number_players import (
    AT_ONCE,
    UNIT,
    Asking,
    LevelPlayer,
    ModelPlayer,
    Rule,
    Said,
    decimal,
    draw,
    only_number,
)
from lightwork.agents.population import PopulationSpec
from lightwork.agents.simulate import Report, parse_place, read_game, simulate, whole_number
from lightwork.errors import HostLostError, LightworkError, RangeError, SpecError
from lightwork.runtime.actors import Actors
from lightwork.runtime.clock import WallClock
from lightwork.runtime.effects import Sleep
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.mailbox import BITS
from lightwork.runtime.places.process import Process

LEVELS = {"name": "levels", "categories": [
    {"category_name": f"level {level}", "percentage": share, "attributes": {"level": level}}
    for level, share in ((0, 0.1), (1, 0.4), (2, 0.3), ("inf", 0.2))
]}  # fmt: skip


def game(agents: int = 101, **said: object) -> NumberGame:
    population = {"total_num": agents, "distributions": [LEVELS]}
    return NumberGame.of({"population": population} | said)


def transcript(report: Report) -> str:
    return "\n".join(json.dumps(done.record()) for done in report.rounds)


def closed_form(played: NumberGame, seed: int) -> NDArray[np.float64]:
    """Means of the rounds by numpy, from levels alone: in millionths, answers rounded as players round."""
    population = played.population.deal(seed)
    level_N = np.array([float(level) for level in population.column("level")])
    ratio = float(played.ratio)
    any_N = np.array([draw(seed, i) % (100 * UNIT + 1) for i in range(len(level_N))])
    answer_N = np.where(level_N == 0, any_N, np.rint(50 * UNIT * ratio**level_N))
    means = []
    for _ in range(played.rounds):
        means.append(answer_N.mean())
        answer_N = np.rint(np.rint(means[-1] * ratio) * ratio ** (level_N - 1))
    return np.array(means)


@pytest.mark.parametrize("ratio", RATIOS, ids=str)
def test_the_mean_of_every_round_is_the_closed_form(ratio: Fraction):
    played = game(1000, ratio=str(ratio), rounds=6)
    report = simulate(played, "sim:2", seed=3)
    means = [float(done.exact_mean) for done in report.rounds]
    assert np.allclose(means, closed_form(played, 3), rtol=1e-6)
    assert all(done.tally.count == 1000 for done in report.rounds)


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_means_of_one_level_contract_by_the_ratio_to_its_power(level: int):
    people = {"total_num": 50, "distributions": [
        {"name": "l", "categories": [
            {"category_name": "all", "percentage": 1, "attributes": {"level": level}}]}]}  # fmt: skip
    report = simulate(NumberGame.of({"population": people, "ratio": "2/3", "rounds": 5}))
    means = [float(done.exact_mean) for done in report.rounds]
    assert np.allclose(np.array(means[1:]) / means[:-1], (2 / 3) ** level, rtol=1e-5)


@pytest.mark.parametrize("place", ["sim:1", "sim:3"])
@pytest.mark.parametrize("groups", [0, 1, 7, 500])
def test_the_transcript_is_the_same_on_simulated_hosts_and_in_any_groups(place: str, groups: int):
    played = game(groups=groups)
    assert transcript(simulate(played, place, seed=5)) == transcript(simulate(game(), seed=5))
    assert transcript(simulate(played, place, seed=6)) != transcript(simulate(game(), seed=5))


@pytest.mark.multiproc
def test_the_transcript_is_the_same_on_two_processes():
    assert transcript(simulate(game(), "process:2", seed=5)) == transcript(simulate(game(), seed=5))


@pytest.mark.slow
def test_the_transcript_is_the_same_on_one_and_two_machines_of_a_ray_cluster(monkeypatch):
    """Of one core each, as Ray sees them."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    monkeypatch.setenv("RAY_AUTH_TOKEN", token_hex(32))
    node = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    here = transcript(simulate(game(), seed=5))
    try:
        assert transcript(simulate(game(), f"ray:1@{cluster.address}", seed=5)) == here
        cluster.add_node(**node)
        assert transcript(simulate(game(), f"ray:2@{cluster.address}", seed=5)) == here
    finally:
        cluster.shutdown()


@pytest.mark.multiproc
def test_a_place_is_sent_one_message_a_round_for_each_group_there():
    kernel = Kernel(WallClock())
    with Actors(kernel, [Process(), Process()]) as actors:
        kernel.run(play(game(1000, groups=6, rounds=4), actors, actors.places[1:]))
        rounds_and_end = 3 * 4 + 3
        beats = 10  # at most, of processes that live a second or two
        assert all(0 <= c.messages - rounds_and_end <= beats for c in actors.counts()[1:])


@pytest.mark.multiproc
def test_a_game_goes_on_after_a_host_was_killed_from_what_was_saved():
    whole, part = game(60, rounds=5), game(60, rounds=2)
    kernel = Kernel(WallClock(), seed=5)
    with Actors(kernel, [Process(), Process()]) as actors:
        played = kernel.run(play(part, actors, actors.places[1:]))
        saved = json.loads(json.dumps(kernel.run(actors.save())))
        os.kill(actors.places[2].pid, signal.SIGKILL)
        with pytest.raises(HostLostError):
            kernel.run(play(whole, actors, actors.places[1:], played=played))
        kernel.run(actors.restore(saved, on=actors.places[2]))
        kernel.run(play(whole, actors, actors.places[1:], played=played))
    rounds = [done.record() for done in played.rounds]
    assert rounds == [done.record() for done in simulate(whole, seed=5).rounds]


def test_a_player_that_is_killed_is_missed_and_one_that_is_paused_is_waited_for():
    played = game(10, thinks_s=1.0, rounds=3, groups=1)
    kernel = Kernel()
    actors = Actors(kernel)
    after: list[Round] = []

    async def steer() -> None:
        first, second = (actors.ref(0, index << BITS, LevelPlayer) for index in (1, 2))
        await Sleep(0.5)
        actors.kill(first)
        actors.pause(second)
        await Sleep(5.0)
        assert [done.tally.count for done in after] == [9]
        actors.resume(second)

    steering = kernel.spawn(steer())
    kernel.run(play(played, actors, actors.places, after.append))
    assert steering.done
    assert [done.tally.count for done in after] == [9, 9, 9]
    assert kernel.now() == pytest.approx(7.5)


def test_players_think_at_the_same_time():
    report = simulate(game(1000, thinks_s=1.0, rounds=3), "sim:4")
    assert 3.0 <= report.seconds < 3.1
    assert report.place == "simulated: sim:4"


def test_a_group_costs_the_moderator_two_messages_a_round_whatever_its_members_are():
    few, many = (simulate(game(agents, rounds=3, groups=6), "sim:2") for agents in (60, 600))
    assert few.messages == many.messages == 2 * 6 * 3


class Scripted:
    """A model that says these texts in turn."""

    name = "scripted"

    def __init__(self, kernel: Kernel, *texts: str) -> None:
        self.kernel, self.texts, self.asked, self.open = kernel, list(texts), [], True

    def stream(self, request: ChatRequest) -> ChatStream:
        self.asked.append(request)
        stream = ChatStream(self.kernel)
        stream.end(Reply(self.texts.pop(0)))
        return stream

    def close(self) -> None:
        self.open = False


FIRST = Said(1, Fraction(2, 3), None)


def ask(*texts: str, said: Said = FIRST) -> tuple[int | None, Scripted]:
    kernel = Kernel()
    model = Scripted(kernel, *texts)
    player = ModelPlayer(Asking(kernel, model, 0, "Guess.\n"), 7, {"level": 2})
    return kernel.run(player.answer(said)), model


def test_a_model_is_asked_as_its_persona_and_a_number_needs_no_second_call():
    number, model = ask(" 33.3\n", said=Said(2, Fraction(2, 3), 37_512_345))
    assert number == 33_300_000
    (request,) = model.asked
    assert request.messages[0] == Message("system", "- level: 2")
    assert request.messages[1].content == "Guess.\n37.5 won at 2/3"


def test_a_second_call_finds_the_number_in_a_thought():
    thought = "The mean will be near 50, two thirds of that are 33.3, and others know it, too: so 22.2"
    number, model = ask(thought, "22.2")
    assert number == 22_200_000
    assert thought in model.asked[1].messages[1].content


def test_a_model_that_gives_no_number_is_asked_again_with_other_seeds_and_then_left_out():
    number, model = ask(*["none", "none"] * 4)
    assert number is None
    assert len({request.seed for request in model.asked}) == 4
    assert ask(*["", "", "", ""])[0] is None


def test_a_model_may_invent_who_it_is_once():
    kernel = Kernel()
    ann = "name: Ann\ngender: female\nage: 34\npersonality: calm"
    model = Scripted(kernel, f"<persona>{ann}</persona>", "12", "13")
    player = ModelPlayer(Asking(kernel, model, 0, "", invent=True), 7, {"level": 2})
    assert kernel.run(player.answer(FIRST)) == 12 * UNIT
    assert kernel.run(player.answer(FIRST)) == 13 * UNIT
    assert [request.messages[0].content for request in model.asked[1:]] == [ann, ann]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("50", 50 * UNIT),
        ("100.0", 100 * UNIT),
        ("my number: 12.5.", 12_500_000),
        ("0", 0),
        ("100.1", None),
        ("-5", None),
        ("1,000", None),
        ("50 or 60", None),
        ("1.2.3", None),
        ("", None),
        ("1e3", None),
        ("33.33333349", 33_333_333),
        ("5" + " " * 60 + "x" * 60, None),
    ],
)
def test_only_one_number_from_0_to_100_is_an_answer(text: str, number: int | None):
    assert only_number(text) == number


def test_invalid_answers_are_not_in_the_mean():
    played = game(4, rounds=1)
    done = simulate(played).rounds[0]
    half = type(done)(1, 8, done.tally, done.ratio)
    assert half.record()["invalid"] == 4
    assert half.mean == done.mean


@pytest.mark.parametrize("level", [0, 1, 2, inf])
def test_a_simulated_model_answers_as_a_player_of_its_level(level: float):
    said = Said(3, Fraction(3, 5), 24 * UNIT)
    system = Message("system", f"- level: {level:g}")
    thought = level_policy(ChatRequest((system, Message("user", said.text()))), "")
    assert only_number(thought) is None
    number = level_policy(ChatRequest((system, Message("user", f"Only the number.\n\n{thought}"))), "")
    assert number == decimal(Rule.of(level, 0).answer(said, 0), 1)


def test_a_game_file_says_who_plays_what(tmp_path):
    (tmp_path / "people.json").write_text(json.dumps({"total_num": 9, "distributions": [LEVELS]}))
    (tmp_path / "game.yaml").write_text("game: numbers\nratio: 3/5\nrounds: 2\npopulation: people.json\n")
    played = read_game(tmp_path / "game.yaml", agents=whole_number("1e3"))
    assert (played.ratio, played.rounds, played.population.total) == (Fraction(3, 5), 2, 1000)
    assert played.models == ()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"round": 3}, "expected: rounds"),
        ({"ratio": "2/0"}, "ratio is '2/0'"),
        ({"ratio": "1e999999999"}, "ratio is"),
        ({"ratio": 1.5}, "ratio is"),
        ({"ratio": 0}, "ratio is"),
        ({"rounds": 0}, "rounds is 0"),
        ({"rounds": True}, "rounds is True"),
        ({"rounds": 2.5}, "rounds is 2.5"),
        ({"thinks_s": "x"}, "thinks_s is 'x'"),
        ({"personas": "invented"}, "personas is 'invented'"),
        ({"rules": 3}, "rules is 3"),
        ({"players": 3}, "model is 3"),
        ({"players": {"on": "cpu"}}, "model is"),
        ({"population": "people.json"}, "population is"),
    ],
)
def test_a_wrong_game_is_named(said, words):
    with pytest.raises((SpecError, RangeError), match=words):
        game(**said)


@pytest.mark.parametrize("level", ["two", 1.5, -1, None, [1]])
def test_a_wrong_level_is_named_before_anybody_plays(level: object):
    category = {"category_name": "all", "percentage": 1, "attributes": {"level": level}}
    people = {"total_num": 5, "distributions": [{"name": "levels", "categories": [category]}]}
    with pytest.raises(SpecError, match="has the level"):
        NumberGame.of({"population": people})


def test_models_are_named_by_text_or_by_where_they_run():
    assert game(players="tiny:llama").models == (ModelAt("tiny:llama"),)
    two = [{"model": "shape:llama-3-8b", "on": "sim:a100"}, "hf:./llama"]
    assert game(players=two).models == (ModelAt("shape:llama-3-8b", "sim:a100"), ModelAt("hf:./llama"))


def taught(kernel: Kernel) -> SharedModel:
    """The engine of this process, whose model says what the policy says."""
    return open_model("tiny:llama", kernel, level_policy)


def test_players_who_ask_an_engine_play_the_same_for_real_and_simulated():
    people = PopulationSpec.of({"total_num": 6, "distributions": [LEVELS]})
    real = simulate(NumberGame(population=people, rounds=2, models=(taught,)))
    engine = ModelAt("shape:llama-3-8b", "sim:a100")
    simulated = simulate(NumberGame(population=people, rounds=2, models=(engine,)), "sim:1")
    assert transcript(real) == transcript(simulated)
    assert [done.tally.count for done in real.rounds] == [6, 6]
    assert simulated.seconds > 0.5


class Crowded(Scripted):
    """A model that answers late, and counts how many wait."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.waiting = self.most = 0

    def stream(self, request: ChatRequest) -> ChatStream:
        stream = ChatStream(self.kernel)
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        self.kernel.at(self.kernel.now() + 1.0, self.say, stream)
        return stream

    def say(self, stream: ChatStream) -> None:
        self.waiting -= 1
        stream.end(Reply("50"))


def test_a_model_is_asked_only_so_many_things_at_once():
    made: list[Crowded] = []

    def make(kernel: Kernel) -> SharedModel:
        made.append(Crowded(kernel))
        return made[-1]

    people = PopulationSpec.of({"total_num": 2 * AT_ONCE + 1})
    report = simulate(NumberGame(population=people, rounds=1, models=(make,)), "sim:1")
    assert report.rounds[0].tally.count == 2 * AT_ONCE + 1
    assert (made[0].most, report.seconds) == (AT_ONCE, 3.0)


def test_a_server_is_a_model_that_is_somewhere_else():
    pytest.importorskip("httpx")
    model = ModelAt("llama", "http://127.0.0.1:1/v1")(Kernel(WallClock()))
    assert model.name == "llama"
    model.close()


def test_nobody_gives_a_number():
    people = PopulationSpec.of({"total_num": 3})
    model = Scripted(Kernel(), *["?"] * 100)
    played = NumberGame(population=people, models=(lambda kernel: model,))
    with pytest.raises(LightworkError, match="round 1: none of 3 players gave a number"):
        simulate(played)
    assert not model.open


@pytest.mark.parametrize("text", ["0", "x", "1e", "1.5", "-1e3", "1e99"])
def test_a_wrong_number_of_agents_is_named(text: str):
    with pytest.raises(RangeError, match="agents"):
        whole_number(text)


def test_hosts_of_a_ray_cluster_are_as_many_as_said_at_the_address_that_is_said():
    said = {"ray:": (1, ""), "ray:2": (2, ""), "ray:auto": (1, "auto"), "ray:3@h:1": (3, "h:1")}
    for text, (number, address) in said.items():
        virtual, places = parse_place(text)
        assert not virtual
        assert [place.address for place in places] == [address] * number


@pytest.mark.parametrize("place", ["sim:", "sim:0", "sim:x", "process:0", "here", "local:2", "process:99999"])
def test_a_wrong_place_is_named(place: str):
    with pytest.raises(SpecError, match="place"):
        simulate(game(), place)
