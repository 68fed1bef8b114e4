"""Whatever a tool does ends in an observation: one test for each way to misbehave."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from lightwork.agents.chat_model import ToolCall
from lightwork.agents.shown_values import LONGEST_ANSWER, shown
from lightwork.agents.tool import Observation, Tool, Toolbox
from lightwork.runtime.clock import WallClock
from lightwork.runtime.futures import CancelledError
from lightwork.runtime.kernel import Kernel


def made(fn: Callable[..., Any], **settings: Any) -> Tool:
    return Tool(name="it", description="", parameters={"type": "object"}, fn=fn, **settings)


def observe(fn: Callable[..., Any], kernel: Kernel | None = None, **settings: Any) -> Observation:
    kernel = kernel or Kernel(WallClock())
    box = Toolbox.of(kernel, [made(fn, **settings)])

    async def main() -> Observation:
        seen: Observation = await box.call(ToolCall("call_1", "it", {}))
        return seen

    observation: Observation = kernel.run(main())
    return observation


WAYS = [{}, {"inline": True}]


@pytest.mark.parametrize("how", WAYS, ids=str)
@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ValueError("no"), "it failed: ValueError: no"),
        (SystemExit(3), "it failed: SystemExit: 3"),
        (StopIteration("x"), "it failed: StopIteration: x"),
        (TimeoutError("own"), "it failed: TimeoutError: own"),
        (ValueError("x" * 1_000_000), "(cut)"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_it_raises_is_told(error: BaseException, why: str, how: dict[str, Any]):
    def fn() -> None:
        raise error

    seen = observe(fn, **how)
    assert why in seen.error
    assert len(seen.text) < 5000


@pytest.mark.parametrize("error", [KeyboardInterrupt(), CancelledError("own"), GeneratorExit()], ids=repr)
def test_what_only_python_should_raise_is_told_where_a_thread_raises_it(error: BaseException):
    def fn() -> None:
        raise error

    assert type(error).__name__ in observe(fn).error


def test_an_interrupt_of_the_program_is_no_answer():
    def fn() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        observe(fn, inline=True)


def test_what_a_coroutine_raises_is_told():
    async def fn() -> None:
        raise SystemExit("bye")

    assert observe(fn).error == "it failed: SystemExit: bye"


def test_a_forgotten_await_is_told():
    async def inner() -> None: ...

    assert "async def" in observe(lambda: inner()).error


def test_an_answer_of_100_mb_is_cut_before_it_is_formatted():
    texts = ["x" * 1000] * 100_000
    seen = observe(lambda: texts)
    assert seen.value is texts
    assert len(seen.text) < LONGEST_ANSWER + 100
    assert "cut" in seen.text
    long = observe(lambda: "x" * 100_000_000)
    assert long.text.endswith("(cut: 100,000,000 characters)")


class Huge:
    formatted = 0

    def __str__(self) -> str:
        Huge.formatted += 1
        return "y" * 1000


def test_what_is_beyond_the_cut_is_not_formatted():
    text = shown([Huge() for _ in range(100_000)], 10_000)
    assert len(text) < 11_000
    assert Huge.formatted <= 11


def test_any_value_is_shown():
    loop: list[Any] = []
    loop.append(loop)

    class Silent:
        def __str__(self) -> str:
            raise RuntimeError

    assert len(shown(loop)) < 200
    assert shown(10**5000) == '"an integer of 16,610 bits"'
    assert shown(Silent()) == "a Silent that cannot be shown: RuntimeError"
    assert shown({"a": (1, {2}), "b": None, 3: b"x"}) == '{"a": [1, [2]], "b": null, "3": "b\'x\'"}'
    assert shown({}) + shown([]) == "{}[]"
    assert shown("ü") == "ü"
    assert shown(["ü"]) == '["ü"]'


def test_what_it_prints_is_a_note(capsys: pytest.CaptureFixture[str]):
    before = sys.stdout

    def fn() -> str:
        print("from the tool")
        return "value"

    async def coroutine() -> str:
        print("before", end=" ")
        await kernel.sleep(0)
        print("after")
        return "value"

    kernel = Kernel(WallClock())
    for seen, note in [
        (observe(fn), "from the tool\n"),
        (observe(fn, inline=True), "from the tool\n"),
        (observe(fn, Kernel()), "from the tool\n"),
        (observe(coroutine, kernel), "before after\n"),
    ]:
        assert (seen.note, seen.text) == (note, "value")
    assert "more)" in observe(lambda: print("x" * 100_000)).note
    assert capsys.readouterr().out == ""
    assert sys.stdout is before


def test_others_print_while_a_tool_runs(capsys: pytest.CaptureFixture[str]):
    kernel, began, goes_on = Kernel(WallClock()), threading.Event(), threading.Event()

    def fn() -> None:
        print("inside")
        began.set()
        goes_on.wait()

    box = Toolbox.of(kernel, [made(fn)])

    async def main() -> Observation:
        call = box.call(ToolCall("call_1", "it", {}))
        await kernel.offload(began.wait)
        print("outside")
        goes_on.set()
        seen: Observation = await call
        return seen

    assert kernel.run(main()).note == "inside\n"
    assert capsys.readouterr().out == "outside\n"


def test_tools_that_hang_are_given_up_and_starve_nobody():
    kernel, release = Kernel(WallClock()), threading.Event()
    tools = [
        made(release.wait, deadline_s=0.05),
        Tool(name="good", description="", parameters={}, fn=lambda: "fine", deadline_s=60),
    ]
    box = Toolbox.of(kernel, tools)

    async def main() -> list[Observation]:
        hanging = [box.call(ToolCall(f"call_{i}", "it", {})) for i in range(20)]
        good = await box.call(ToolCall("call_good", "good", {}))
        offloaded = await kernel.offload(lambda: "free")  # the kernel's own pool is not touched
        return [good, Observation(good.call, offloaded), *await kernel.gather(*hanging)]

    good, offloaded, *hung = kernel.run(main())
    assert (good.value, offloaded.value) == ("fine", "free")
    assert {seen.error for seen in hung} == {"it did not answer in 0.05 s"}
    release.set()


@pytest.mark.multiproc
def test_a_hanging_tool_does_not_hold_up_the_end_of_the_process(tmp_path: Any):
    program = """
import threading
from lightwork.agents.chat_model import ToolCall
from lightwork.agents.tool import Tool, Toolbox
from lightwork.runtime.clock import WallClock
from lightwork.runtime.futures import CancelledError
from lightwork.runtime.kernel import Kernel
kernel = Kernel(WallClock())
tool = Tool(name="it", description="", parameters={}, fn=threading.Event().wait, deadline_s=0.01)
box = Toolbox.of(kernel, [tool])
async def main():
    return await box.call(ToolCall("1", "it", {}))
print(kernel.run(main()).error)
"""

    async def run() -> bytes:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await asyncio.wait_for(child.communicate(), 60)
        return out

    assert asyncio.run(run()) == b"it did not answer in 0.01 s\n"


def test_a_tool_with_limit_one_never_runs_twice_at_once_even_past_its_deadline():
    kernel, release = Kernel(WallClock()), threading.Event()
    running, most = 0, 0

    def fn() -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        release.wait()
        running -= 1
        return "done"

    box = Toolbox.of(kernel, [made(fn, limit=1, deadline_s=0.05)])

    async def main() -> list[Observation]:
        first = [box.call(ToolCall(str(i), "it", {})) for i in range(3)]
        late = await kernel.gather(*first)
        release.set()
        return [*late, await box.call(ToolCall("last", "it", {}))]

    *late, last = kernel.run(main())
    assert [seen.error for seen in late] == [
        "it did not answer in 0.05 s",
        "it was not started: the call before it hangs",
        "it was not started: the call before it hangs",
    ]
    assert last.value == "done"
    assert most == 1


def test_calls_in_line_are_patient_while_those_before_them_end():
    kernel = Kernel()

    async def fn() -> float:
        await kernel.sleep(0.9)
        return kernel.now()

    box = Toolbox.of(kernel, [made(fn, limit=2, deadline_s=1.0)])

    async def main() -> list[Observation]:
        return await kernel.gather(*(box.call(ToolCall(str(i), "it", {})) for i in range(8)))

    ends = [seen.value for seen in kernel.run(main())]
    assert ends == [pytest.approx(0.9 * (i // 2 + 1)) for i in range(8)]


def test_a_cancelled_call_gives_its_place_to_the_next():
    kernel = Kernel()
    ran: list[str] = []

    async def fn(name: str) -> None:
        ran.append(name)
        await kernel.sleep(1.0)

    box = Toolbox.of(kernel, [made(fn, limit=1)])

    async def main() -> None:
        calls = {name: box.call(ToolCall(name, "it", {"name": name})) for name in "abcd"}
        await kernel.sleep(0.5)
        kernel.cancel(calls["b"])  # waits
        kernel.cancel(calls["a"])  # runs
        await kernel.gather(calls["c"], calls["d"])

    kernel.run(main())
    assert ran == ["a", "c", "d"]
    assert kernel.now() == pytest.approx(2.5)


def test_a_call_that_nothing_limits_may_take_for_ever():
    kernel = Kernel()

    async def fn() -> str:
        await kernel.sleep(1e9)
        return "done"

    assert observe(fn, kernel, deadline_s=float("inf"), limit=1).value == "done"


def test_arguments_that_were_no_json_are_told():
    kernel = Kernel()
    box = Toolbox.of(kernel, [made(lambda: 1)])

    async def main() -> Observation:
        seen: Observation = await box.call(ToolCall("1", "it", {}, raw='{"a": ]'))
        return seen

    assert kernel.run(main()).error == 'the arguments of it are no JSON object: {"a": ]'
