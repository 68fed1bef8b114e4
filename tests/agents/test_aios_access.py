"""What an agent may not do is not done, whatever its program tries with the objects that it has."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightwork.agents.aios.access import Access
from lightwork.agents.aios.memory import Memory
from lightwork.agents.aios.storage import Storage
from lightwork.agents.aios.system import AIOS, Agent
from lightwork.agents.chat_model import ChatRequest, Message, ToolCall
from lightwork.agents.context import Context, Result
from lightwork.agents.profile_model import Profile, ProfileModel
from lightwork.agents.tool import Tool, Toolbox
from lightwork.errors import AccessDeniedError, LightworkError, UsageError
from lightwork.runtime.kernel import Kernel

ANN, BOB, EVE = Agent("ann"), Agent("bob"), Agent("eve")
FRIENDS = {"friends": ["ann", "bob"], "admins": ["ann"]}


class Does:
    """A program that is a function of its context."""

    def __init__(self, do: Any) -> None:
        self.do = do

    async def run(self, context: Context, question: str) -> Result:
        return Result("", observations=await self.do(context))


def make(folder: Path, **settings: Any) -> tuple[AIOS, list[str]]:
    """ran: what the tools have really done."""
    kernel, ran = Kernel(), []

    def really(text: str) -> str:
        ran.append(text)
        return text

    schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    tools = [
        Tool(name="look", description="", parameters=schema, fn=really),
        Tool(name="shut_down", description="", parameters=schema, fn=really),
        Tool(name="send", description="", parameters=schema, fn=really, effect="irreversible"),
    ]
    model = ProfileModel(kernel, Profile(), lambda request, said: "hello")
    system = AIOS(
        kernel,
        {"": model},
        tools,
        access=Access(FRIENDS, {"shut_down": "admins"}),
        memory=Memory(folder / "memory"),
        storage=Storage(folder / "files"),
        **settings,
    )
    return system, ran


def do(system: AIOS, agent: Agent, *calls: tuple[str, dict[str, Any]]) -> list[Any]:
    """The observations of calls, one after another."""

    async def one_by_one(context: Context) -> list[Any]:
        return [await context.tools.call(ToolCall("", name, given)) for name, given in calls]

    return list(system.kernel.run(Does(one_by_one).run(system.context(agent), "")).observations)


def denied(system: AIOS) -> list[tuple[str, str]]:
    return [(denial.agent, denial.wanted) for denial in system.access.denials]


def test_memory_and_files_are_read_by_their_owner_and_its_groups(tmp_path: Path) -> None:
    system, _ = make(tmp_path)
    item, version = do(
        system, ANN, ("remember", {"text": "a secret"}), ("write_file", {"name": "plan", "text": "one two"})
    )
    assert version.value == 1
    reads: list[tuple[str, dict[str, Any]]] = [
        ("recall", {"item": item.value, "owner": "ann"}),
        ("read_file", {"name": "plan", "owner": "ann"}),
        ("search_files", {"words": "two", "owner": "ann"}),
        ("list_files", {"owner": "ann"}),
    ]
    for agent in (ANN, BOB):
        values = [observation.value for observation in do(system, agent, *reads)]
        assert values == ["a secret", "one two", ["plan"], {"plan": [1]}]
    assert not system.access.denials
    refused = do(system, EVE, *reads)
    assert all("'eve' may not do this" in observation.error for observation in refused)
    assert denied(system) == [("eve", f"{name} of 'ann'") for name, _ in reads]


def test_the_call_itself_raises_and_is_in_the_record(tmp_path: Path) -> None:
    system, _ = make(tmp_path)
    system.context(EVE)

    async def main() -> None:
        with pytest.raises(AccessDeniedError, match="may not do this: read_file of 'ann'"):
            await system.call(1, ToolCall("", "read_file", {"name": "plan", "owner": "ann"}))

    system.kernel.run(main())
    (call,) = system.calls
    assert (call.agent, call.status, call.starts_s) == ("eve", "done", [])
    assert "may not" in call.error
    assert denied(system) == [("eve", "read_file of 'ann'")]


def test_tools_of_a_group_are_for_its_members(tmp_path: Path) -> None:
    system, ran = make(tmp_path)
    for agent in (ANN, BOB, EVE):
        do(system, agent, ("shut_down", {"text": agent.name}))
    assert ran == ["ann"]
    assert denied(system) == [(name, "shut_down") for name in ("bob", "eve")]


@pytest.mark.parametrize("answer", [None, False, "later", True])
def test_what_cannot_be_undone_is_done_when_it_was_confirmed(tmp_path: Path, answer: Any) -> None:
    asked: list[tuple[str, str]] = []

    async def confirm(agent: str, call: ToolCall) -> Any:
        asked.append((agent, call.name))
        return answer

    system, ran = make(tmp_path, confirm=None if answer is None else confirm)
    sent, _, deleted = do(
        system,
        BOB,
        ("send", {"text": "dear all"}),
        ("write_file", {"name": "plan", "text": "x"}),
        ("delete_file", {"name": "plan"}),
    )
    yes = answer is True
    assert ran == ["dear all"] * yes
    assert bool(sent.error) == bool(deleted.error) == (not yes)
    assert do(system, BOB, ("list_files", {}))[0].value == ({} if yes else {"plan": [1]})
    assert asked == ([] if answer is None else [("bob", "send"), ("bob", "delete_file")])
    assert len(system.access.denials) == (0 if yes else 2)


# -- a malicious program


def reachable(root: object, most: int = 20_000) -> Iterator[object]:
    """Whatever public names lead to from an object: attributes, items, arguments of partial calls."""
    seen: set[int] = set()
    todo: list[object] = [root]
    while todo and len(seen) < most:
        one = todo.pop()
        if id(one) in seen or isinstance(one, str | bytes | int | float | types.ModuleType | type):
            continue
        seen.add(id(one))
        yield one
        for name in dir(one):
            if not name.startswith("_"):
                try:
                    todo.append(getattr(one, name))
                except Exception:
                    continue
        if isinstance(one, dict):
            todo += [*one, *one.values()]
        elif isinstance(one, list | tuple | set | frozenset):
            todo += one


def test_public_names_lead_to_nothing_real(tmp_path: Path) -> None:
    system, _ = make(tmp_path)
    context = system.context(EVE)
    found = [*reachable(context)]
    assert len(found) > 100
    real = (AIOS, Access, Memory, Storage, ProfileModel)
    assert not [one for one in found if isinstance(one, real)]
    functions = {id(tool.fn) for tool in system._tools}
    assert not [one for one in found if id(one) in functions]


class Sly(str):
    """Equals whatever it is compared with."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return hash("eve")


async def evil(context: Context) -> list[Any]:
    """Everything that a program could think of."""
    tools = context.tools.tools
    got: list[Any] = []

    async def attempt(start: Any) -> None:
        try:
            got.append(await start())
        except LightworkError as error:
            got.append(error)

    await attempt(lambda: tools["shut_down"].fn(text="directly"))
    await attempt(lambda: tools["read_file"].fn(name="plan", owner="ann"))
    await attempt(lambda: tools["read_file"].fn(name="plan", owner=Sly("ann")))
    await attempt(lambda: tools["read_file"].fn(name="plan", owner=["ann"]))
    await attempt(lambda: tools["read_file"].fn(name="../ann/plan"))
    await attempt(lambda: tools["read_file"].fn(name="plan", owner="../files/ann"))
    await attempt(lambda: tools["send"].fn(text="directly", confirmed=True))
    own = Tool(name="shut_down", description="", parameters={}, fn=lambda text: text, inline=True)
    box = Toolbox.of(context.kernel, [*(t for t in tools.values() if t.name != "shut_down"), own])
    context.tools = box
    got.append(await box.call(ToolCall("", "shut_down", {"text": "only a function of my own"})))
    got.append(await box.call(ToolCall("", "send", {"text": "please"})))
    try:
        tools["shut_down"].effect = "pure"  # type: ignore[misc]
    except AttributeError as error:
        got.append(error)
    return got


def test_a_malicious_program_gets_nothing_and_everything_is_logged(tmp_path: Path) -> None:
    system, ran = make(tmp_path, confirm=lambda agent, call: False)
    do(system, ANN, ("write_file", {"name": "plan", "text": "a secret"}))
    results = system.kernel.run(Does(evil).run(system.context(EVE), ""))
    assert ran == []
    assert "a secret" not in str(results.observations)
    assert denied(system) == [
        ("eve", "shut_down"),
        ("eve", "read_file of 'ann'"),
        ("eve", "read_file of '../files/ann'"),
        ("eve", "send for good"),
    ]
    errors = [call for call in system.calls if call.agent == "eve" and call.error]
    assert len(errors) == 8


def test_a_program_that_has_ended_asks_for_nothing_any_more(tmp_path: Path) -> None:
    system, ran = make(tmp_path)
    kept: list[Context] = []

    async def keep(context: Context) -> list[Any]:
        kept.append(context)
        return [await context.tools.call(ToolCall("", "look", {"text": "while it runs"}))]

    async def main() -> str:
        await system.run(Does(keep), "", EVE)
        late = await kept[0].tools.call(ToolCall("", "look", {"text": "afterwards"}))
        with pytest.raises(UsageError, match="process 1 has ended"):
            await kept[0].ask(ChatRequest((Message("user", "hello"),)))
        return str(late.error)

    assert "process 1 has ended" in system.kernel.run(main())
    assert ran == ["while it runs"]
