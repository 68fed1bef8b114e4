"""The first five minutes, command by command: what each prints has the layout that is promised."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.multiproc
TIME = r"[\d.]+ (s|ms|µs)"
SERVED = rf"ttft {TIME}  itl {TIME}  goodput (?P<good>\d+)/32"
DEMO = [
    r"  load    tiny:llama  \d+ layers, [\d.]+ MB     [\d.]+ s",
    rf"  serve   32 requests  {SERVED}",
    r"  sim     the same 32 requests on sim:a100x8, drawn beside the real run",
    r"  next    lightwork chat tiny:llama \| lightwork techniques \| lightwork claims sarathi",
]
READY = (
    r"  (?P<url>http://127\.0\.0\.1:\d+)/v1   page (?P=url)/ui   "
    r"ready in [\d.]+ s \((\w[\w ]* [\d.]+, )+\w[\w ]* [\d.]+; [\d.]+ MB\)   docs (?P=url)/docs"
)
CLAIM = (
    r"sarathi  \S.*   paper up to 2\.6x   here [\d.]+x \(simulated\)   holds \(at least 2\.6x, within 30%\).*"
)


def lightwork(*words: str, folder: Path) -> list[str]:
    asked = [sys.executable, "-m", "lightwork", *words]
    return subprocess.run(asked, cwd=folder, check=True, capture_output=True, text=True).stdout.splitlines()


def test_the_demo_and_the_server_say_what_is_promised(tmp_path: Path) -> None:
    lines = lightwork("demo", folder=tmp_path)
    at = [next(i for i, line in enumerate(lines) if re.fullmatch(form, line)) for form in DEMO]
    assert at == sorted(at)
    assert at[-1] == len(lines) - 1, "the next commands come last"
    picture = [
        line.split("  ")[-1] for line in lines if line.startswith("          ") and "  " in line.strip()
    ]
    assert {"real: tiny:llama on this CPU", "simulated: tiny:llama on sim:a100x8"} <= {*picture}
    assert (tmp_path / "demo-trace.json").is_file()

    words = ["serve", "tiny:llama", "--use", "Sarathi(chunk=256)", "--port", "0", "--max-len", "256"]
    asked = [sys.executable, "-m", "lightwork", *words]
    with subprocess.Popen(asked, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stderr is not None
            told = next(line.rstrip("\n") for line in process.stderr if "/v1   page" in line)
            ready = re.fullmatch(READY, told)
            assert ready is not None, told
            assert httpx.get(f"{ready['url']}/ui").status_code == 200
            assert httpx.get(f"{ready['url']}/v1/models").json()["data"][0]["id"] == "tiny:llama"
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()


@pytest.mark.slow
def test_the_claim_says_what_is_promised(tmp_path: Path) -> None:
    lines = lightwork("claims", "sarathi", folder=tmp_path)
    assert re.fullmatch(CLAIM, lines[0]), lines[0]
