"""`lightwork chat`: answers streamed from a server over HTTP, in a pipe and in a terminal."""

from __future__ import annotations

import io
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest

pytest.importorskip("httpx")
pytest.importorskip("prompt_toolkit")

from lightwork.cli import main
from lightwork.cli._chat import Chat, Stats
from lightwork.cli._gauges import Serving, line, parsed
from lightwork.cli._repl import answer, kept_history, obey, repl, split_techniques
from lightwork.cli._server import Server
from lightwork.errors import LightworkError, SpecError, UsageError
from lightwork.home import home
from lightwork.runtime.trace import Span

USAGE = {"prompt_tokens": 5, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 2}}
TIMINGS = {"drafted": 4, "accepted": 3}


class Ticks:
    """A clock that gains a quarter of a second each time it is read."""

    def __init__(self) -> None:
        self.reads = 0

    def now(self) -> float:
        self.reads += 1
        return self.reads / 4


class Fake(BaseHTTPRequestHandler):
    """An OpenAI server that says the prompt backwards. `!` breaks off, `?` ends with an error, `#` is 400."""

    asked: ClassVar[list[dict]] = []

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, status: int, kind: str, body: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def do_GET(self) -> None:
        self.reply(200, "application/json", json.dumps({"data": [{"id": "tiny"}]}))

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(request)
        prompt = request["messages"][-1]["content"]
        if prompt == "#":
            error = {"message": "prompt has 9 tokens\n  expected: <= 8", "type": "invalid_request_error"}
            self.reply(400, "application/json", json.dumps({"error": error}))
            return
        events = [{"choices": [{"delta": {"content": c}}]} for c in reversed(prompt)]
        events.append({"choices": [], "usage": USAGE, "timings": TIMINGS})
        if prompt == "?":
            events.append({"error": {"message": "the runner died"}})
        body = "".join(f"data: {json.dumps(e)}\n\n" for e in events)
        self.reply(200, "text/event-stream", body + ("" if prompt == "!" else "data: [DONE]\n\n"))


@pytest.fixture(scope="module")
def url():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Fake)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def chat(url: str):
    Fake.asked.clear()
    with Server(url) as server:
        yield Chat(server, system="be short", settings={"max_tokens": 9}, clock=Ticks)


@pytest.mark.parametrize("ending", ["", "/", "/v1"])
def test_in_a_pipe_stdout_is_only_the_answer(url, ending, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("abc\n"))
    assert main(["chat", url + ending, "--seed", "7"]) == 0
    assert capsys.readouterr() == ("cba\n", "")
    assert Fake.asked[-1]["seed"] == 7
    assert Fake.asked[-1]["model"] == "tiny"
    assert "temperature" not in Fake.asked[-1]


def test_the_conversation_is_sent_and_can_be_forgotten(chat):
    assert "".join(chat.ask("ab")) == "ba"
    assert "".join(chat.ask("cd")) == "dc"
    said = [(m["role"], m["content"]) for m in Fake.asked[-1]["messages"]]
    assert said == [("system", "be short"), ("user", "ab"), ("assistant", "ba"), ("user", "cd")]
    assert obey(chat, "/reset")
    assert chat.messages == []


def test_an_answer_that_is_left_early_does_not_join_the_conversation(chat):
    pieces = chat.ask("abc")
    assert next(pieces) == "c"
    pieces.close()
    assert chat.messages == []


def test_stats_say_tokens_per_second_ttft_and_accepted_drafts(chat, capsys):
    answer(chat, "abcd")
    line = "4 tokens  4 tokens/s  ttft 250 ms  2 of 5 prompt tokens cached  3 of 4 drafts accepted"
    assert capsys.readouterr().out == f"dcba\n{line}\n"
    assert Stats().line() == "0 tokens"
    told = Stats(output_tokens=101)
    told.saw(0.25, 0.25, {"decode_ms": 10.0})  # all pieces came at once; the server knows better
    assert told.line() == "101 tokens  10,000 tokens/s  ttft 250 ms"


@pytest.mark.parametrize(
    ("prompt", "kind", "said"),
    [
        ("#", UsageError, "the server answers 400: prompt has 9 tokens"),
        ("?", LightworkError, "the runner died"),
        ("!", LightworkError, "the answer broke off"),
    ],
)
def test_what_goes_wrong_on_the_server_is_said(chat, prompt, kind, said):
    with pytest.raises(kind, match=said):
        list(chat.ask(prompt))
    assert chat.messages == []


def test_no_server_and_no_prompt(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello"))
    assert main(["chat", "http://127.0.0.1:1"]) == 1
    assert "no server answers at http://127.0.0.1:1" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.StringIO(" \n"))
    assert main(["chat", "http://127.0.0.1:1"]) == 2
    assert main(["chat", "http://127.0.0.1:1", "--use", "Ngram"]) == 2
    assert "a URL without --use" in capsys.readouterr().err


def test_techniques_are_checked_before_a_server_starts(capsys):
    assert main(["chat", "tiny:llama", "--use", "Ngrm"]) == 2
    assert "expected: Ngram" in capsys.readouterr().err


def test_commands(chat, tmp_path: Path, capsys):
    list(chat.ask("ab"))
    assert obey(chat, f"/save {tmp_path}/chat.json")
    saved = json.loads((tmp_path / "chat.json").read_text())
    assert saved["messages"][1]["content"] == "ba"
    assert obey(chat, "/stats")
    assert "4 tokens" in capsys.readouterr().out
    assert not obey(chat, "/quit")
    with pytest.raises(SpecError, match="/stats"):
        obey(chat, "/stat")
    with pytest.raises(LightworkError, match=r"new\.json cannot be written: File exists"):
        obey(chat, f"/save {tmp_path}/chat.json/new.json")
    with pytest.raises(UsageError, match="not started by the chat"):
        obey(chat, "/use Ngram")


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("", []),
        ("Ngram", ["Ngram"]),
        ("Ngram(k=4, n=2)  Sarathi( chunk=8 )", ["Ngram(k=4, n=2)", "Sarathi( chunk=8 )"]),
        ("A(x='(') B", ["A(x='(')", "B"]),
        ("A) B", ["A)", "B"]),
    ],
)
def test_use_takes_several_techniques(line, parts):
    assert split_techniques(line) == parts


def test_the_terminal_loop(chat, capsys):
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text("ab\r\r/reset\r/wrong\r#\r\x03cd\r/quit\r")
        repl(chat)
    captured = capsys.readouterr()
    assert "ba\n" in captured.out
    assert "dc\n" in captured.out
    assert "no command is called '/wrong'" in captured.err
    assert "the server answers 400" in captured.err


def test_pasted_blocks_are_one_prompt_and_history_outlives_a_chat(chat):
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text("\x1b[200~one\ntwo\x1b[201~\r/quit\r")
        repl(chat)
    assert Fake.asked[-1]["messages"][-1]["content"] == "one\ntwo"
    place = home() / "chat-history"
    assert place.stat().st_mode & 0o777 == 0o600
    chat.reset()
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text("\x1b[A\x1b[A\r/quit\r")  # up: /quit, and the prompt before it
        repl(chat)
    assert Fake.asked[-1]["messages"][-1]["content"] == "one\ntwo"


def test_a_history_that_cannot_be_kept_ends_no_chat(chat, tmp_path: Path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIGHTWORK_HOME", str(tmp_path / "file"))
    history = kept_history()
    history.append_string("kept for this chat")
    assert history.get_strings() == ["kept for this chat"]


EXPOSED = """# HELP lightwork_num_requests_running Sequences
# TYPE lightwork_num_requests_running gauge
lightwork_num_requests_running 2.0
lightwork_num_requests_waiting 1.0
lightwork_kv_cache_usage_perc 0.25
lightwork_generation_tokens_total 40.0
lightwork_request_success_total{finished_reason="stop"} 3.0
"""


def test_the_line_of_a_server_is_read_from_its_metrics():
    assert parsed(EXPOSED) == [2.0, 1.0, 0.25, 40.0]
    assert parsed('{"data": []}') is None
    assert line(2, 1, 812.3, 0.25) == "running 2  waiting 1  812 tokens/s  KV 25%"


def test_the_line_of_serve_follows_steps_and_ends_idle():
    shown: list[str] = []
    serving = Serving(shown.append)
    for i in range(11):
        args = {"chunks": [(0, i, 1, 0, 1)], "running": int(i < 10), "waiting": 0, "kv_usage": 0.5}
        serving.on(Span("engine", "step", str(i), i * 0.1, (i + 1) * 0.1, args=args))
    assert shown[0] == "running 1  waiting 0  10 tokens/s  KV 50%"
    assert len(shown) == 4
    assert shown[-1] == "running 0  waiting 0  0 tokens/s  KV 50%"
    serving.on(Span("engine", "arrive", "1", 2.0, 2.0, args={"n": 1}))
    serving.on(Span("engine", "finish", "1", 2.1, 2.1, args={"reason": "cancelled"}))
    assert len(shown) == 5
    assert shown[-1].startswith("running 0")


CHILD = """#!{python}
import signal, sys
print("load    tiny", flush=True)
if "--use" in sys.argv and "Broken" in sys.argv:
    print("it broke", file=sys.stderr, flush=True)
    raise SystemExit(5)
signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
print("http://127.0.0.1:4321/v1   page http://127.0.0.1:4321/ui", file=sys.stderr, flush=True)
signal.pause()
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script = tmp_path / "python"
    script.write_text(CHILD.format(python=sys.executable))
    script.chmod(0o755)
    monkeypatch.setattr("lightwork.cli._server.sys.executable", str(script))


@pytest.mark.multiproc
def test_a_server_of_its_own_is_started_restarted_and_ended(child):
    with Server("tiny:llama", use=["Ngram"]) as server:
        first = server._child
        assert server.url == "http://127.0.0.1:4321"
        assert first is not None
        assert "Ngram" in first.args
        server.restart(["Sarathi"])
        assert first.returncode == 0
        second = server._child
        assert second is not None
        assert "Sarathi" in second.args
    assert second.returncode == 0


@pytest.mark.multiproc
def test_a_server_that_ends_early_is_named_with_its_last_words(child):
    with pytest.raises(LightworkError, match="ended with code 5:\n    load    tiny\n    it broke"):
        Server("tiny:llama", use=["Broken"]).__enter__()
