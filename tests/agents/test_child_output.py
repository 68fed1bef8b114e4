"""What child processes of tools write: in the observation of the call that ran, never in our own output."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from lightwork.agents.chat_model import ToolCall
from lightwork.agents.child_output import ChildOutput
from lightwork.agents.quiet import MOST_CHARS
from lightwork.agents.tool import Observation, Tool, Toolbox
from lightwork.errors import UsageError
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel

Out = pytest.CaptureFixture[str]
SAYS = "import os, sys; os.write(1, (sys.argv[1] + chr(10)).encode())"


def child(text: str, **settings: Any) -> None:
    subprocess.run([sys.executable, "-c", SAYS, text], check=True, **settings)


def observed(*functions: Callable[[], object], deadline_s: float = 60.0) -> tuple[list[Observation], str]:
    """Each called once, all at once; and what is nobody's."""
    kernel = Kernel(WallClock())
    parameters = {"type": "object", "properties": {}}
    tools = [
        Tool(name=f"t{i}", description="", parameters=parameters, fn=fn, deadline_s=deadline_s)
        for i, fn in enumerate(functions)
    ]
    toolbox = Toolbox.of(kernel, tools)

    async def main() -> list[Observation]:
        return await kernel.gather(*(toolbox.call(ToolCall(tool.name, tool.name, {})) for tool in tools))

    with ChildOutput() as children:
        print("ours")
        found = kernel.run(main())
        print("ours again")
    return found, str(children.rest)


def test_a_call_is_told_what_its_children_print(capfd: Out) -> None:
    def works() -> int:
        print("before")
        child("from a child")
        os.system("echo from a shell")
        child("handed on", stdout=sys.stdout)
        sys.stdout.buffer.write("bytes é".encode())
        return 4

    [one], rest = observed(works)
    assert (one.value, one.error, rest) == (4, "", "")
    assert [*one.note.splitlines()] == ["before", "from a child", "from a shell", "handed on", "bytes é"]
    assert capfd.readouterr().out == "ours\nours again\n"
    child("afterwards")
    assert capfd.readouterr().out == "afterwards\n"


def test_an_async_tool_has_what_its_children_print(capfd: Out) -> None:
    async def works() -> None:
        child("from a child")

    [one], rest = observed(works)
    assert (one.note, rest) == ("from a child\n", "")
    assert capfd.readouterr().out == "ours\nours again\n"


def test_what_several_calls_print_at_once_is_nobodys(capfd: Out) -> None:
    meet = threading.Barrier(3)

    def speaker(text: str) -> Callable[[], str]:
        def works() -> str:
            meet.wait(60)
            print(f"{text} itself")
            child(f"{text}'s child")
            meet.wait(60)
            return text

        return works

    found, rest = observed(*map(speaker, "abc"))
    assert [one.value for one in found] == ["a", "b", "c"]
    assert [one.note for one in found] == ["a itself\n", "b itself\n", "c itself\n"]
    assert sorted(rest.splitlines()) == ["a's child", "b's child", "c's child"]
    assert capfd.readouterr().out == "ours\nours again\n"


def test_a_child_that_says_more_than_a_pipe_holds_does_not_wait(capfd: Out) -> None:
    size = 1 << 21
    [one], _ = observed(lambda: subprocess.run([sys.executable, "-c", f"print('x' * {size})"]).returncode)
    assert (one.value, one.error) == (0, "")
    assert one.note == f"{'x' * MOST_CHARS} ... ({size + 1 - MOST_CHARS:,} characters more)"
    assert capfd.readouterr().out == "ours\nours again\n"


def test_a_child_that_outlives_its_call_is_not_cut_off(capfd: Out) -> None:
    left: list[subprocess.Popen[bytes]] = []
    waits = "import sys; sys.stdin.read(); print('late', flush=True); print('later', flush=True)"

    def works() -> None:
        left.append(subprocess.Popen([sys.executable, "-c", waits], stdin=subprocess.PIPE))

    [one], _ = observed(works)
    [process] = left
    process.communicate()
    assert (one.note, process.returncode) == ("", 0)
    assert capfd.readouterr().out == "ours\nours again\n"


def test_a_call_that_hangs_leaves_standard_output_as_it_was(capfd: Out) -> None:
    before, goes_on, ended = sys.stdout, threading.Event(), threading.Event()

    def hangs() -> None:
        goes_on.wait(60)
        print("much later")
        ended.set()

    [one], _ = observed(hangs, deadline_s=0.01)
    assert "did not answer" in one.error
    print("still ours")
    goes_on.set()
    assert ended.wait(60)
    for thread in threading.enumerate():
        if thread.name.startswith("lightwork-children"):
            thread.join(60)
    assert capfd.readouterr().out == "ours\nours again\nstill ours\n"
    assert before in (sys.stdout, getattr(sys.stdout, "real", None))


def test_there_is_one_at_a_time() -> None:
    with ChildOutput(), pytest.raises(UsageError, match="another ChildOutput"), ChildOutput():
        pass
    with ChildOutput():
        pass


PROGRAM = """
import os, subprocess, sys
from lightwork.agents.child_output import ChildOutput
from lightwork.agents.quiet import Note, collecting

note = Note()
with ChildOutput() as children:
    print("first")
    with collecting(note):
        os.system("echo out; echo err >&2")
    print("second", file=sys.stderr)
    sys.stdout.write("third")
print(repr(str(note)), repr(str(children.rest)))
"""


def test_where_no_terminal_is_errors_of_children_are_seen() -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert ran.stdout == "first\nthird'out\\n' ''\n"
    assert ran.stderr == "err\nsecond\n"


def test_on_a_terminal_nothing_of_a_child_is_seen() -> None:
    import pty

    parent, terminal = pty.openpty()
    ran = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=terminal, stderr=terminal)
    os.close(terminal)
    said = b""
    try:
        while data := os.read(parent, 1 << 12):
            said += data
    except OSError:  # how a terminal ends
        pass
    os.close(parent)
    assert ran.wait(60) == 0
    assert said.decode().splitlines() == ["first", "second", "third'out\\nerr\\n' ''"]


def test_a_program_without_standard_output_runs_all_the_same() -> None:
    program = (
        "import lightwork.agents.child_output as one, os\n"
        "with one.ChildOutput() as children: os.system('echo')\n"
        "raise SystemExit(7 + len(str(children.rest)))"
    )
    ran = subprocess.run(
        ["sh", "-c", f'exec {sys.executable} -c "$0" >&-', program], stderr=subprocess.DEVNULL
    )
    assert ran.returncode == 7
