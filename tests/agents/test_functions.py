"""Functions as tools: what their hints and docstrings say, and what happens to calls that do not fit."""

from __future__ import annotations

import dataclasses
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import pytest

from lightwork.agents.chat_model import ToolCall
from lightwork.agents.functions import load_tools, tool
from lightwork.agents.tool import Observation, Tool, Toolbox
from lightwork.errors import SpecError
from lightwork.runtime.kernel import Kernel


@dataclasses.dataclass
class Place:
    name: str
    height: float = 0.0


class Order(pydantic.BaseModel):
    item: str
    number: int = pydantic.Field(ge=1)


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@tool
def plain(a: int, b: int = 2) -> int:
    """Add two numbers.

    They may be negative.

    a: the first one, which may well
        be long.
    b: the second one.
    """
    return a + b


@tool
def rich(
    kind: Literal["x", "y"],
    names: list[str],
    counts: dict[str, int],
    place: Place,
    order: Order | None = None,
    colour: Colour = Colour.RED,
    size: Annotated[int, pydantic.Field(ge=0, le=9)] = 3,
) -> dict[str, Any]:
    """All sorts."""
    return {"kind": kind, "names": names, "counts": counts, "place": place, "order": order, "colour": colour}


def call(made: Tool, arguments: dict[str, Any]) -> Observation:
    kernel = Kernel()
    seen = Toolbox.of(kernel, [made]).call(ToolCall("call_1", made.name, arguments))

    async def main() -> Observation:
        observation: Observation = await seen
        return observation

    observation: Observation = kernel.run(main())
    return observation


def test_the_schema_says_what_hints_and_docstring_do():
    assert plain.name == "plain"
    assert plain.description == "Add two numbers.\n\nThey may be negative."
    assert plain.parameters == {
        "type": "object",
        "properties": {
            "a": {"type": "integer", "description": "the first one, which may well be long."},
            "b": {"type": "integer", "description": "the second one.", "default": 2},
        },
        "required": ["a"],
        "additionalProperties": False,
    }
    assert rich.parameters["properties"]["kind"] == {"enum": ["x", "y"], "type": "string"}
    assert rich.parameters["properties"]["size"] == {
        "type": "integer",
        "minimum": 0,
        "maximum": 9,
        "default": 3,
    }
    assert rich.parameters["$defs"]["Place"]["properties"]["name"] == {"type": "string"}


@pytest.mark.parametrize(
    "doc",
    [
        "Do it.\n\n    Args:\n        x: how\n            much\n\n    Returns:\n        nothing\n    ",
        "Do it.\n\n    :param x: how\n        much\n    :returns: nothing\n    ",
        "Do it.\n\n    x (int): how\n        much\n    ",
    ],
)
def test_docstrings_of_the_usual_styles_are_read(doc: str):
    def fn(x: int) -> None: ...

    fn.__doc__ = doc
    made = tool(fn)
    assert made.description == "Do it."
    assert made.parameters["properties"]["x"]["description"] == "how much"


def test_arguments_arrive_as_what_the_hints_say():
    seen = call(
        rich,
        {
            "kind": "x",
            "names": ["a"],
            "counts": {"b": "3"},
            "place": {"name": "hill", "height": 2},
            "order": {"item": "tea", "number": 1},
            "colour": "blue",
        },
    )
    assert not seen.error
    assert seen.value["place"] == Place("hill", 2.0)
    assert seen.value["order"] == Order(item="tea", number=1)
    assert seen.value["counts"] == {"b": 3}
    assert seen.value["colour"] is Colour.BLUE
    assert seen.text == (
        '{"kind": "x", "names": ["a"], "counts": {"b": 3}, "place": {"name": "hill", "height": 2.0}, '
        '"order": {"item": "tea", "number": 1}, "colour": "blue"}'
    )


def test_arguments_by_position_get_their_names():
    assert call(plain, plain.bind([3, 4])).value == 7
    assert call(plain, plain.bind(["3"])).value == 5


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({}, "a is missing"),
        ({"a": "x"}, "a: Input should be a valid integer, unable to parse string as an integer, it is 'x'"),
        ({"a": 1, "c": 2}, "there is no argument 'c'"),
        ({"a": 1, "B": 2}, "there is no argument 'B', only b"),
        ({"a": [1] * 1000}, "a: Input should be a valid integer, it is of type list"),
        ({"a": 1.5}, "a: Input should be a valid integer"),
    ],
)
def test_arguments_that_do_not_fit_are_observations(arguments: dict[str, Any], why: str):
    seen = call(plain, arguments)
    assert why in seen.error
    assert "plain(a: int, b: int = 2) -> int" in seen.error
    assert len(seen.text) < 500


def test_a_result_that_is_not_what_is_declared_is_an_observation():
    @tool
    def lies(kind: str) -> list[int]:
        return {"str": "no list", "part": [1, "two"], "good": (1, 2)}[kind]  # type: ignore[return-value]

    assert "lies returned what it does not declare" in call(lies, {"kind": "str"}).error
    assert "result[1]" in call(lies, {"kind": "part"}).error
    assert "list[int]" in call(lies, {"kind": "part"}).error
    assert call(lies, {"kind": "good"}).value == [1, 2]


def test_a_coroutine_function_awaits_the_kernel():
    kernel = Kernel()

    @tool
    async def slow(seconds: float) -> str:
        await kernel.sleep(seconds)
        return "done"

    async def main() -> list[Observation]:
        box = Toolbox.of(kernel, [slow])
        return await kernel.gather(*(box.call(ToolCall(str(s), "slow", {"seconds": s})) for s in (2, "x")))

    good, bad = kernel.run(main())
    assert good.value == "done"
    assert kernel.now() == 2.0
    assert "seconds: Input should be a valid number" in bad.error


def test_settings_are_those_of_tool():
    @tool(name="other", description="Said here.", effect="irreversible", limit=1, deadline_s=3.0)
    def fn(x: int, /, *, y: str = "a") -> str:
        """Not this."""
        return f"{x}{y}"

    assert (fn.name, fn.description, fn.effect, fn.limit, fn.deadline_s) == (
        "other",
        "Said here.",
        "irreversible",
        1,
        3.0,
    )
    assert call(fn, {"x": 1, "y": "b"}).value == "1b"


def test_what_cannot_be_called_by_name_is_refused():
    def star(*names: str) -> None: ...
    def stars(**names: str) -> None: ...
    def unknown(x: Nowhere) -> None: ...  # type: ignore[name-defined] # noqa: F821
    def größe(x: int) -> None: ...

    for fn, why in [(star, "by name"), (stars, "by name"), (unknown, "Nowhere"), (größe, "be called")]:
        with pytest.raises(SpecError, match=why):
            tool(fn)


FILE = '''
"""Tools of a test."""
from __future__ import annotations
from dataclasses import dataclass
from json import dumps
import neighbour
print("imported")

@dataclass
class Place:
    name: str

def here(place: Place) -> str:
    """Where it is."""
    return neighbour.WORD + place.name

def _hidden(x: int) -> int:
    return x

def unhinted(x):
    return x
'''


def test_a_file_of_functions_is_a_list_of_tools(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "neighbour.py").write_text('WORD = "at "\n')
    (tmp_path / "my_tools.py").write_text(FILE)
    [here] = load_tools(tmp_path / "my_tools.py")
    assert call(here, {"place": {"name": "home"}}).value == "at home"
    assert capsys.readouterr().out == ""
    assert str(tmp_path) not in sys.path
    decorated = (
        "from lightwork.agents.functions import tool\n\n@tool(name='there')\ndef _f(x: int): ...\n\nf = _f\n"
    )
    (tmp_path / "my_tools.py").write_text(FILE + decorated)
    assert [made.name for made in load_tools(tmp_path / "my_tools.py")] == ["there"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x = 1\n", "no tool"),
        ("1 / 0\n", "ZeroDivisionError"),
        ("def f(:\n", "SyntaxError"),
        ("raise SystemExit\n", "SystemExit"),
    ],
)
def test_a_file_without_tools_is_refused(tmp_path: Path, text: str, why: str):
    (tmp_path / "my_tools.py").write_text(text)
    with pytest.raises(SpecError, match=why):
        load_tools(tmp_path / "my_tools.py")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(SpecError, match="no file"):
        load_tools(tmp_path / "none.py")
