"""The folder is the registry, and no text can do more than name a technique."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightwork import techniques
from lightwork.errors import SpecError

ZOO = {
    "__init__.py": "",
    "serve/__init__.py": "",
    "serve/schedulers/__init__.py": """
        from typing import Protocol

        class Scheduler(Protocol):
            def plan(self) -> int: ...
    """,
    "serve/schedulers/prefill_first.py": '''
        """Prefill first: prompts win.

        Paper:  none
        Idea:   prompts
            before all else
        Shapes: View -> Step
        Cost:   O(1)
        Claims: -
        """

        from dataclasses import dataclass

        @dataclass(frozen=True, slots=True, kw_only=True)
        class PrefillFirst:
            max_tokens: int | None = None

            def plan(self) -> int:
                return 0
    ''',
    "serve/schedulers/fair.py": '''
        """Fair: a wrapper.

        Idea:   wrap
        """

        from __future__ import annotations

        from dataclasses import dataclass
        from typing import Literal

        from zoo.decode.proposers import Proposer
        from zoo.serve.schedulers import Scheduler
        from zoo.serve.schedulers.prefill_first import PrefillFirst

        @dataclass(frozen=True, slots=True, kw_only=True)
        class Fair:
            inner: Scheduler = PrefillFirst()
            draft: Proposer | None = None
            weight: float = 1.0
            name: str = "a"
            on: bool = False
            sizes: tuple[int, ...] = ()
            pair: tuple[int, float] = (1, 2.0)
            mode: Literal["slow", "fast"] = "slow"

            def plan(self) -> int:
                return 1
    ''',
    "serve/schedulers/_shared.py": "raise ImportError('private files are no techniques')",
    "decode/__init__.py": "",
    "decode/proposers/__init__.py": """
        from typing import Protocol

        class Proposer(Protocol):
            def propose(self) -> int: ...
    """,
    "decode/proposers/ngram.py": '''
        """Ngram: what came before comes again.

        Idea: look back
        """

        from dataclasses import dataclass

        from lightwork.errors import RangeError

        @dataclass(frozen=True, slots=True, kw_only=True)
        class Ngram:
            k: int
            n: int = 3

            def __post_init__(self) -> None:
                if self.k < 1:
                    raise RangeError(f"Ngram.k is {self.k}", expected=">= 1", fix="Ngram(k=4)")

            def propose(self) -> int:
                return self.k
    ''',
    "decode/proposers/heavy.py": '''
        """Heavy: needs what is not installed.

        Idea: fail when imported
        """

        raise AssertionError("listing must not import a technique")
    ''',
}


@pytest.fixture(scope="module", autouse=True)
def zoo(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("zoo")
    for name, text in ZOO.items():
        file = root / "zoo" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text).lstrip())
    sys.path.insert(0, str(root))
    yield
    sys.path.remove(str(root))
    for name in [n for n in sys.modules if n.split(".")[0] == "zoo"]:
        del sys.modules[name]


def parse(text: str):
    return techniques.parse(text, "zoo")


def test_listing_reads_folders_and_headers_without_importing():
    found = {t.name: t for t in techniques.listing("zoo")}
    assert sorted(found) == ["Fair", "Heavy", "Ngram", "PrefillFirst"]
    first = found["PrefillFirst"]
    assert (first.kind, first.module) == ("scheduler", "zoo.serve.schedulers.prefill_first")
    assert first.idea == "prompts before all else"
    assert first.missing() == ()
    assert found["Ngram"].missing() == ("Paper", "Shapes", "Cost", "Claims")
    assert "zoo.decode.proposers.heavy" not in sys.modules


def test_a_bare_name_is_the_technique_with_its_defaults():
    assert parse("PrefillFirst") == parse("PrefillFirst()") == parse(" PrefillFirst( ) ")


def test_fields_of_every_type():
    built = parse(
        "Fair(inner=Fair(inner=PrefillFirst(max_tokens=8)), draft=Ngram(k=4), weight=2, name='x',"
        " on=True, sizes=(1, -2), pair=(3, 4), mode='fast')"
    )
    assert built.inner.inner.max_tokens == 8
    assert (built.weight, built.name, built.on) == (2.0, "x", True)
    assert (built.sizes, built.pair, built.mode) == ((1, -2), (3, 4.0), "fast")
    assert isinstance(built.weight, float)
    assert parse(repr(built)) == built


@given(
    weight=st.floats(allow_nan=False),
    name=st.text(max_size=20),
    on=st.booleans(),
    sizes=st.lists(st.integers(-(2**62), 2**62), max_size=4),
    k=st.integers(1, 2**62) | st.none(),
)
def test_what_repr_prints_can_be_parsed(weight, name, on, sizes, k):
    fair = type(parse("Fair"))
    draft = None if k is None else type(parse("Ngram(k=1)"))(k=k)
    built = fair(weight=weight, name=name, on=on, sizes=tuple(sizes), draft=draft)
    assert parse(repr(built)) == built


@pytest.mark.parametrize(
    ("text", "wrong", "expected", "fix"),
    [
        ("Prefilfirst", "no technique is called 'Prefilfirst'", "PrefillFirst", "PrefillFirst"),
        (
            "PrefillFirst(max_token=8)",
            "PrefillFirst has no field 'max_token'",
            "max_tokens",
            "PrefillFirst(max_tokens=8)",
        ),
        (
            "PrefillFirst(8)",
            "PrefillFirst is given 8 without a field's name",
            "PrefillFirst(max_tokens=...)",
            "",
        ),
        ("Ngram(k='four')", "Ngram.k is 'four'", "int", "Ngram(k=...)"),
        ("Ngram(k=True)", "Ngram.k is True", "int", "Ngram(k=...)"),
        ("Ngram", "Ngram needs k", "", "Ngram(k=..., n=3)"),
        ("Ngram(k=0)", "Ngram.k is 0", ">= 1", "Ngram(k=4)"),
        ("Fair(mode='warp')", "Fair.mode is 'warp'", "one of 'slow', 'fast'", "Fair(mode='slow')"),
        ("Fair(draft=PrefillFirst)", "Fair.draft is ", "a proposer: Heavy, Ngram or None", ""),
        ("Fair(sizes=(1, 'x'))", "Fair.sizes is (1, 'x')", "tuple[int, ...]", "Fair(sizes=())"),
        ("Fair(on=1)", "Fair.on is 1", "bool", "Fair(on=False)"),
    ],
)
def test_an_error_says_what_was_wrong_expected_and_what_to_do(text, wrong, expected, fix):
    with pytest.raises(SpecError) as caught:
        parse(text)
    assert caught.value.wrong.startswith(wrong)
    assert expected in caught.value.expected
    assert fix in caught.value.fix


HOSTILE = [
    "",
    " ",
    "\x00",
    "PrefillFirst(\x00)",
    "__import__('os').system('true')",
    "__import__",
    "Fair.__class__",
    "Fair(inner=Fair.inner)",
    "Fair()()",
    "Fair(**{'on': True})",
    "Fair(*(1,))",
    "Fair(on=True, on=False)",
    "lambda: Fair",
    "f'{Fair}'",
    "Fair(name=f'{1}')",
    "Fair(name='%s' % 1)",
    "Fair(weight=1+1)",
    "Fair(weight=1j)",
    "Fair(weight=--1)",
    "Fair(weight=-True)",
    "Fair(weight=nan)",
    "Fair(weight=1e999)",
    "Fair(name=b'x')",
    "Fair(name=...)",
    "Fair(sizes=[1])",
    "Fair(sizes={1})",
    "Fair(sizes=(x for x in (1,)))",
    "Fair(on=(y := True))",
    "Fair; Fair",
    "import os",
    "1",
    "'Fair'",
    "None",
    "inf",
    "(Fair, Fair)",
    "Fair(weight=" + "9" * 400 + ")",
    "Fair(weight=" + "9" * 5000 + ")",
    "Fair(sizes=(9223372036854775808,))",
    "Fair(name='" + "x" * 10_000 + "')",
    "(" * 4000,
    "-" * 8000 + "1",
    "Fair(inner=" * 60 + "Fair" + ")" * 60,
    "Fair(" * 900,
    "Fair(sizes=" + "(" * 60 + "1" + ",)" * 60 + ")",
    "Fair(name='\ud800')",
    "Fair(name='\\d')\n",
    "Fair(\nweight=1",
    "Ｆair(ｗeight='x')",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_refused_and_nothing_else_happens(text):
    with pytest.raises(SpecError):
        parse(text)


@given(
    st.text(max_size=80)
    | st.text("()=,.'\"- FairNgmkPeflst0123456789_[]{}*:\n\\", max_size=120)
    | st.from_regex(r"(Fair|Ngram)\((k|inner|weight|sizes)=[ -~]{0,30}\)", fullmatch=True)
)
def test_any_text_names_a_technique_or_is_a_spec_error(text):
    try:
        built = parse(text)
    except SpecError:
        return
    assert techniques.kind_of(built, "zoo")


def test_two_techniques_of_one_kind_are_refused():
    both = techniques.parse_all(["Fair", "Ngram(k=2)"], "zoo")
    assert [type(t).__name__ for t in both] == ["Fair", "Ngram"]
    assert techniques.parse_all(both, "zoo") == both
    with pytest.raises(SpecError, match="Fair and PrefillFirst are both of kind scheduler"):
        techniques.parse_all(["Fair", "PrefillFirst"], "zoo")


def test_another_package_adds_a_technique_by_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine.py").write_text(
        '"""Mine: ours.\n\nIdea: be elsewhere\n"""\nfrom dataclasses import dataclass\n\n'
        "@dataclass(frozen=True)\nclass Mine:\n    k: int = 1\n"
    )
    info = tmp_path / "mine-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: mine\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[lightwork.techniques]\nscheduler.Mine = mine:Mine\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    techniques.listing.cache_clear()
    try:
        assert repr(techniques.parse("Mine(k=2)")) == "Mine(k=2)"
        assert techniques.find("Mine").kind == "scheduler"
    finally:
        techniques.listing.cache_clear()
        sys.modules.pop("mine", None)


def test_one_written_on_the_spot_is_of_the_kind_whose_methods_it_has():
    @dataclass(frozen=True)
    class Mine:
        def init(self) -> None: ...
        def plan(self, state: None, view: object) -> None: ...

    @dataclass(frozen=True)
    class Guess:
        def begin(self) -> None: ...

    @dataclass(frozen=True)
    class Neither:
        init: int = 0

    assert [techniques.kind_of(some) for some in (Mine(), Guess(), Neither(), object())] == [
        "scheduler",
        "proposer",
        "",
        "",
    ]


def test_names_are_unique_over_all_kinds():
    names = [t.name for t in techniques.listing()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("technique", techniques.listing(), ids=lambda t: t.name)
def test_every_technique_round_trips(technique):
    built = techniques.parse(technique.name)
    assert techniques.parse(repr(built)) == built
    assert techniques.kind_of(built) == technique.kind
