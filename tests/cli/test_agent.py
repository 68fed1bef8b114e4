"""`lightwork agent`: a question, tools of a file or of a world, and a model here or behind a URL."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from threading import Thread

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")
pytest.importorskip("numba")

from lightwork.agents.chat_model import ChatRequest, ToolCall
from lightwork.agents.policies import call_text
from lightwork.agents.teacher import open_teacher
from lightwork.agents.worlds.plan_world import PlanWorld
from lightwork.claims._planners import truth
from lightwork.cli import main
from lightwork.cli._server import Server
from lightwork.serve.http.main import BackgroundServer, load
from lightwork.serve.plan import Plan

Out = pytest.CaptureFixture[str]
TOOLS = '''
HEIGHTS = {"Oslo": 23, "Bergen": 12}

def height(city: str) -> int:
    """How high a city lies, in m."""
    print("looking it up")
    return HEIGHTS[city]

def higher(values: list[int]) -> int:
    """The larger of some numbers."""
    return max(values)
'''
PLAN = '1. height("Oslo")\n2. height("Bergen")\n3. higher([$1, $2])\n4. join()'
QUESTION = "how high is the higher one?"


def said(request: ChatRequest, so_far: str) -> str:
    """Plans and joins; where it is offered tools, calls them one turn after another."""
    seen = [message for message in request.messages if message.role == "tool"]
    if request.tools:
        calls = [ToolCall("", "height", {"city": city}) for city in ("Oslo", "Bergen")]
        return call_text(calls[len(seen)]) if len(seen) < 2 else f"{seen[0].content} m"
    last = request.messages[-1].content
    return "Thought: seen.\nAction: Finish(23 m)" if "Observations:" in last else PLAN


@pytest.fixture(scope="module")
def teacher() -> Iterator[str]:
    with BackgroundServer(load(Plan(), name="teacher", opener=partial(open_teacher, said))) as url:
        yield url


@pytest.fixture
def tools(tmp_path: Path) -> str:
    file = tmp_path / "my_tools.py"
    file.write_text(TOOLS)
    return str(file)


def episode(level: int, seed: int):
    return PlanWorld(split="heldout").sample(Random(seed), level)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_the_built_in_model_answers_in_a_pipe_with_nothing_else(level: int, capsys: Out) -> None:
    assert main(["agent", "--tools", f"world:{level}"]) == 0
    out = capsys.readouterr()
    assert out.out == f"{truth(episode(level, 0))}\n"
    assert out.err == ""


def test_the_built_in_model_behind_a_url_is_asked_as_it_has_learnt(capsys: Out) -> None:
    with BackgroundServer(load(Plan())) as url:
        assert main(["agent", "--tools", "world:2", "--model", url]) == 0
    assert capsys.readouterr().out == f"{truth(episode(2, 0))}\n"


def test_the_run_is_shown_and_kept(tmp_path: Path, capsys: Out) -> None:
    file = tmp_path / "run.json"
    assert main(["agent", "--tools", "world:2", "--show", "--trace", str(file)]) == 0
    shown = capsys.readouterr().out
    asked = episode(2, 0)
    assert shown.startswith(f"question  {asked.question}\n\n{asked.gold}")
    assert shown.endswith(f"answer  {truth(asked)}\n")
    num = len(asked.gold.split("\n")) - 1
    lanes = [line for line in shown.splitlines() if line.split(" ")[0].isdecimal() and line.count("O") > 0]
    assert len(lanes) == num
    assert main(["trace", str(file)]) == 0
    assert "tools" in capsys.readouterr().out


def test_calls_for_machines(teacher: str, tools: str, capsys: Out) -> None:
    assert main(["agent", QUESTION, "--tools", tools, "--model", teacher, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["answer"], told["why"], told["turns"]) == ("23 m", "", 2)
    assert [call["tool"] for call in told["calls"]] == ["height", "height", "higher"]
    assert [call["answer"] for call in told["calls"]] == ["23", "12", "23"]
    assert told["calls"][0]["printed"].strip() == "looking it up"
    assert told["calls"][2]["arguments"] == {"values": [23, 12]}
    assert 0 <= told["calls"][0]["start_s"] <= told["calls"][0]["end_s"] <= told["calls"][2]["start_s"]
    assert told["said"][0] == PLAN


LOUD = """
import subprocess
subprocess.run(["echo", "while it is imported"])

def height(city: str) -> int:
    '''How high a city lies, in m.'''
    subprocess.run(["echo", f"looking {city} up"])
    return {"Oslo": 23, "Bergen": 12}[city]

def higher(values: list[int]) -> int:
    '''The larger of some numbers.'''
    subprocess.run(["echo", "comparing"])
    return max(values)
"""


def test_what_children_of_tools_print_is_no_answer(
    teacher: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loud.py").write_text(LOUD)
    asked = ["agent", QUESTION, "--tools", str(tmp_path / "loud.py"), "--model", teacher]
    assert main(asked) == 0
    assert capfd.readouterr().out == "23 m\n"
    assert main([*asked, "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["calls"][2]["printed"] == "comparing\n"
    printed = "".join([call.get("printed", "") for call in told["calls"]]) + told["printed"]
    assert sorted(printed.splitlines()) == ["comparing", "looking Bergen up", "looking Oslo up"]


class Half(BaseHTTPRequestHandler):
    """A server that plans, and fails to join."""

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""

    def do_GET(self) -> None:
        self.answer(200, json.dumps({"data": [{"id": "half"}]}))

    def do_POST(self) -> None:
        if b"Observations:" in self.rfile.read(int(self.headers["content-length"])):
            self.answer(500, json.dumps({"error": {"message": "no memory left"}}))
            return
        said = {"choices": [{"delta": {"content": PLAN}, "finish_reason": "stop"}]}
        self.answer(200, f"data: {json.dumps(said)}\n\ndata: [DONE]\n\n")

    def answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())


def test_what_nobody_printed_is_shown_when_a_run_fails(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    meets = LOUD.replace("import subprocess", "import subprocess, threading\nmeet = threading.Barrier(2)")
    looks_up = '    subprocess.run(["echo", f"looking'
    (tmp_path / "loud.py").write_text(meets.replace(looks_up, f"    meet.wait()\n{looks_up}", 1))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Half)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        assert main(["agent", QUESTION, "--tools", str(tmp_path / "loud.py"), "--model", url]) == 1
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    out = capfd.readouterr()
    assert out.out == ""
    assert "looking Oslo up\n" in out.err or "looking Bergen up\n" in out.err
    assert "no memory left" in out.err


KEY = "sk-a-secret"


@pytest.fixture(scope="module")
def locked() -> Iterator[str]:
    loaded = load(Plan(), name="teacher", opener=partial(open_teacher, said), api_key=KEY)
    with BackgroundServer(loaded) as url:
        yield url


def test_a_key_is_sent_and_shown_nowhere(
    locked: str, tools: str, tmp_path: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.json"
    asked = ["agent", QUESTION, "--tools", tools, "--model", locked, "--trace", str(file)]
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    for shown in ("--json", "--show"):
        assert main([*asked, shown]) == 0
        out = capsys.readouterr()
        assert "23 m" in out.out
        assert KEY not in out.out + out.err + file.read_text()
    monkeypatch.setattr(sys, "stdin", io.StringIO("anything"))
    assert main(["chat", locked, "--max-tokens", "4"]) == 0
    for wrong, told in (("sk-wrong", "set OPENAI_API_KEY"), ("sk wrong", "cannot be sent")):
        monkeypatch.setenv("OPENAI_API_KEY", wrong)
        assert main(asked) == 2
        out = capsys.readouterr()
        assert told in out.err
        assert wrong not in out.out + out.err
    monkeypatch.delenv("OPENAI_API_KEY")
    assert main(asked) == 2
    assert "the server answers 401" in capsys.readouterr().err
    assert main(["agent", "--help"]) == 0
    assert "OPENAI_API_KEY" in capsys.readouterr().out


def test_a_key_is_for_servers_that_run_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert Server("http://127.0.0.1:9").api_key == KEY
    assert Server("tiny:llama").api_key is None


def test_another_program(teacher: str, tools: str, capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION}\n"))
    assert main(["agent", "--tools", tools, "--model", teacher, "--use", "React()"]) == 0
    assert capsys.readouterr().out == "23 m\n"


def test_a_budget_that_is_spent_is_no_answer(teacher: str, tools: str, capsys: Out) -> None:
    asked = ["agent", QUESTION, "--tools", tools, "--model", teacher, "--use", "React()", "--turns", "2"]
    assert main(asked) == 1
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err.startswith("NoAnswer: the run has used its 2 turns")


def test_techniques_of_the_engine_beside_a_program(capsys: Out) -> None:
    techniques = ["--use", "Ngram(k=4)", "--use", "LlmCompiler()"]
    assert main(["agent", "--tools", "world:2", *techniques]) == 0
    assert capsys.readouterr().out == f"{truth(episode(2, 0))}\n"


@pytest.mark.parametrize(
    ("asked", "code", "told"),
    [
        (["agent"], 2, "Missing option '--tools'"),
        (["agent", "--tools", "world:9"], 2, "world:9 is unknown"),
        (["agent", "--tools", "nowhere.py", "?"], 2, "there is no file nowhere.py"),
        (["agent", "--tools", "world:1", "--use", "Reakt()"], 2, "React"),
        (["agent", "--tools", "world:1", "--use", "React()", "--use", "ParallelCalls()"], 2, "one program"),
        (
            ["agent", "--tools", "world:1", "--model", "http://127.0.0.1:9", "--use", "Ngram()"],
            2,
            "--use cannot",
        ),
        (["agent", "--tools", "world:1", "--model", "http://127.0.0.1:9"], 1, "127.0.0.1:9"),
        (["agent", "--tools", "world:1", "--on", "sim:a100"], 2, "says nothing"),
    ],
)
def test_what_cannot_be_is_said(asked: list[str], code: int, told: str, capsys: Out) -> None:
    assert main(asked) == code
    out = capsys.readouterr()
    assert out.out == ""
    assert told in out.err


def test_no_question(tools: str, capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert main(["agent", "--tools", tools]) == 2
    assert "there is no question" in capsys.readouterr().err
