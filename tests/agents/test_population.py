"""Populations: how many of which sort, exactly; who is what, independently; personas from models."""

from __future__ import annotations

import json
from fractions import Fraction
from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightwork.agents.chat_model import ChatRequest, ChatStream, Reply
from lightwork.agents.personas import RETRIES, between, expand, expand_all, template
from lightwork.agents.population import PopulationSpec, largest_remainders, read_config
from lightwork.errors import LightworkError, RangeError, SpecError
from lightwork.runtime.kernel import Kernel


def category(name: str, percentage: float, **attributes: object) -> dict:
    return {"category_name": name, "percentage": percentage, "attributes": attributes}


def distribution(name: str, *categories: dict) -> dict:
    return {"name": name, "categories": list(categories)}


SCHOOLING = distribution(
    "education",
    category("school", 0.29, education="left school at 16"),
    category("trade", 0.41, education="learnt a trade"),
    category("university", 0.30, education="has a degree"),
)
TEMPER = distribution(
    "temper", category("calm", 0.5, temper="calm"), category("hasty", 0.5, temper="hasty", sport="runs")
)


def deal(total: int, *distributions: dict, seed: int = 0):
    return PopulationSpec.of({"total_num": total, "distributions": list(distributions)}).deal(seed)


@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=12).filter(any),
    st.integers(1, 1_000_000),
)
def test_counts_are_those_of_the_largest_remainders(parts: list[int], total: int):
    shares = [Fraction(part, sum(parts)) for part in parts]
    counts = largest_remainders(shares, total)
    assert sum(counts) == total
    rest = [share * total - floor(share * total) for share in shares]
    extra = [count - floor(share * total) for count, share in zip(counts, shares, strict=True)]
    assert set(extra) <= {0, 1}
    with_one = [(r, -i) for i, r in enumerate(rest) if extra[i]]
    without = [(r, -i) for i, r in enumerate(rest) if not extra[i]]
    assert not with_one or not without or min(with_one) > max(without)


@pytest.mark.parametrize(
    ("shares", "total", "expected"),
    [
        ((0.29, 0.71), 100, {"a": 29, "b": 71}),  # 0.29 * 100 is 28.999999999999996 in floating point
        ((33.3, 33.3, 33.3), 100, {"a": 34, "b": 33, "c": 33}),
        ((0.5, 0.25, 0.25), 10, {"a": 5, "b": 3, "c": 2}),
        ((0.2, 0.7, 0.1), 1, {"a": 0, "b": 1, "c": 0}),
        ((0.0, 1.0), 7, {"a": 0, "b": 7}),
    ],
)
def test_a_population_has_exactly_so_many_of_each(shares, total, expected):
    said = distribution("d", *(category(n, s) for n, s in zip("abc", shares, strict=False)))
    assert deal(total, said).counts() == {"d": expected}


def test_two_distributions_are_independent():
    stats = pytest.importorskip("scipy.stats")
    population = deal(10_000, SCHOOLING, TEMPER)
    table = [[0, 0] for _ in range(3)]
    for a, b in zip(*population.codes, strict=True):
        table[a][b] += 1
    assert [sum(row) for row in table] == [2900, 4100, 3000]
    assert stats.chi2_contingency(table).pvalue > 0.05


def test_agents_have_the_attributes_of_all_their_categories():
    population = deal(1000, SCHOOLING, TEMPER)
    assert population.attributes(0).keys() >= {"education", "temper"}
    column = population.column("education")
    assert [population.attributes(i)["education"] for i in range(1000)] == column
    assert population.column("sport", "none").count("runs") == 500
    assert population.column("nobody has this") == [None] * 1000
    with pytest.raises(RangeError, match="no agent 1000"):
        population.attributes(1000)


def test_the_same_seed_deals_the_same_and_another_one_does_not():
    dealt = [deal(500, SCHOOLING, seed=seed).column("education") for seed in (1, 1, 2)]
    assert dealt[0] == dealt[1] != dealt[2]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ([], "population is"),
        ({"total_num": 0}, "total_num is 0"),
        ({"total_num": True}, "total_num is True"),
        ({"total_num": 1e6}, "total_num is 1000000.0"),
        ({"total": 3}, "total_num"),
        ({"total_num": 3, "distributions": {}}, "distributions is"),
        ({"total_num": 3, "distributions": [[]]}, r"distributions\[0\] is"),
        ({"total_num": 3, "distributions": [{"name": 3, "categories": []}]}, "has the name 3"),
        ({"total_num": 3, "distributions": [distribution("d")]}, "'d' has categories"),
        ({"total_num": 3, "distributions": [distribution("d", category("a", 0.5))]}, "sum to 0.5"),
        ({"total_num": 3, "distributions": [distribution("d", category("a", -1))]}, "percentage -1"),
        ({"total_num": 3, "distributions": [distribution("d", category("a", float("nan")))]}, "nan"),
        ({"total_num": 3, "distributions": [distribution("d", category("a", 60), category("a", 40))]}, "two"),
        ({"total_num": 3, "distributions": [TEMPER, TEMPER]}, "two distributions"),
        (
            {"total_num": 3, "distributions": [TEMPER, distribution("d", category("a", 1, temper="x"))]},
            "attribute 'temper'",
        ),
        ({"total_num": 3, "distributions": [{**TEMPER, "names": 1}]}, "expected: name"),
        (
            {"total_num": 3, "distributions": [distribution("d", {"category_name": "a", "percentag": 1})]},
            "expected: percentage",
        ),
    ],
)
def test_a_wrong_configuration_is_named(said, words):
    with pytest.raises((SpecError, RangeError), match=words):
        PopulationSpec.of(said)


def test_configurations_are_read_from_json_yaml_and_toml(tmp_path):
    said = {"total_num": 3, "distributions": [TEMPER]}
    (tmp_path / "a.json").write_text(json.dumps(said))
    (tmp_path / "a.yaml").write_text("total_num: 3\ndistributions: []\n")
    (tmp_path / "a.toml").write_text("total_num = 3\n")
    assert read_config(tmp_path / "a.json") == said
    assert read_config(tmp_path / "a.yaml") == {"total_num": 3, "distributions": []}
    assert read_config(tmp_path / "a.toml") == {"total_num": 3}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", "{"),
        ("a.yaml", "a: [1"),
        ("a.toml", "= 1"),
        ("a.yaml", "- 1"),
        ("a.yaml", "\x00"),
        ("none", ""),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, text):
    if name != "none":
        (tmp_path / name).write_text(text)
    with pytest.raises(SpecError, match=name):
        read_config(tmp_path / name)


def test_yaml_makes_no_objects(tmp_path):
    (tmp_path / "a.yaml").write_text("a: !!python/object/apply:os.getcwd []")
    with pytest.raises(SpecError, match="cannot be understood"):
        read_config(tmp_path / "a.yaml")


class Writes:
    """A model that says these texts, one after another, and remembers what it was asked."""

    name = "writes"

    def __init__(self, kernel: Kernel, *texts: str) -> None:
        self.kernel, self.texts, self.asked = kernel, list(texts), []

    def stream(self, request: ChatRequest) -> ChatStream:
        self.asked.append(request)
        stream = ChatStream(self.kernel)
        stream.end(Reply(self.texts.pop(0)))
        return stream


ANN = "name: Ann\ngender: female\nage: 34\npersonality: calm and exact"


def test_a_model_writes_a_persona_between_tags_and_is_asked_again():
    kernel = Kernel()
    model = Writes(
        kernel, "I would rather not", "<persona>name: Ann</persona>", f"ok <persona>\n{ANN}\n</persona>"
    )
    persona = kernel.run(expand(model, {"education": "a degree"}))
    assert (persona.text, persona.source, persona.tries) == (ANN, "model", 3)
    assert "- education: a degree" in model.asked[0].messages[0].content
    assert len({request.seed for request in model.asked}) == 3


def test_a_model_that_never_writes_one_is_named():
    kernel = Kernel()
    model = Writes(kernel, *["no"] * (1 + RETRIES))
    with pytest.raises(LightworkError, match="writes wrote no persona in 6 tries; its last one was 'no'"):
        kernel.run(expand(model, {}))
    assert not model.texts


def test_personas_of_all_agents_come_in_order_and_a_template_says_so():
    kernel, population = Kernel(), deal(3, TEMPER)
    texts = [f"<persona>{ANN} {i}</persona>" for i in range(3)]
    personas = kernel.run(expand_all(kernel, Writes(kernel, *texts), population, at_once=1))
    assert [persona.text[-1] for persona in personas] == ["0", "1", "2"]
    listed = kernel.run(expand_all(kernel, None, population))
    assert [persona.source for persona in listed] == ["template"] * 3
    assert listed[0] == template(population.attributes(0))
    assert "- temper:" in listed[0].text


def test_only_whole_personas_between_tags_count():
    assert between(f"<persona>{ANN}") == ""
    assert between(f"<persona>x</persona> <persona>**Name**: Ann\n{ANN[10:]}</persona>").startswith(
        "**Name**"
    )
