"""Programs that people judge models with, as clients of a running server: lm_eval and inspect_ai."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from lightwork.models import resolve
from lightwork.serve.http.main import BackgroundServer, load
from lightwork.serve.plan import Plan

pytestmark = [pytest.mark.peer, pytest.mark.slow]

MODEL = "tiny:llama"
QUESTIONS = [
    {"question": "One plus one?", "choices": ["two", "ten"], "gold": 0},
    {"question": "Red or blue?", "choices": ["blue", "green", "red"], "gold": 2},
    {"question": "Yes?", "choices": ["no", "yes"], "gold": 1},
]
CHOICE_TASK = """
task: small_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list: [{{metric: acc}}]
"""
TEXT_TASK = """
task: small_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[gold]}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 8, temperature: 0}}
metric_list: [{{metric: exact_match}}]
"""
LM_EVAL = """
import json, sys
import lm_eval
from lm_eval.tasks import TaskManager
url, folder, tokenizer, out = sys.argv[1:]
args = {"model": "tiny:llama", "base_url": f"{url}/v1/completions", "tokenizer": tokenizer,
        "tokenizer_backend": "huggingface", "num_concurrent": 1, "max_length": 512}
found = lm_eval.simple_evaluate(model="local-completions", model_args=args, log_samples=True,
    tasks=["small_choice", "small_text"], bootstrap_iters=0,
    task_manager=TaskManager(include_path=folder, include_defaults=False))
samples = {name: [s["resps"] for s in found["samples"][name]] for name in found["samples"]}
json.dump({"results": found["results"], "samples": samples}, open(out, "w"), default=str)
"""
INSPECT = """
import json, sys
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate
url, folder, out = sys.argv[1:]
samples = [Sample(input=f"Say {word}", target=word) for word in ("yes", "no", "red")]
[log] = eval(Task(dataset=samples, solver=generate(), scorer=includes()), model="openai/tiny:llama",
    model_base_url=f"{url}/v1", model_args={"api_key": "none"}, max_tokens=8, temperature=0.0, seed=1,
    log_dir=folder, display="none")
told = [s.output.completion for s in log.samples or []]
json.dump({"status": log.status, "told": told, "error": str(log.error)}, open(out, "w"))
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with BackgroundServer(load(Plan(model=MODEL, max_len=512))) as url:
        yield url


def run(script: str, folder: Path, *args: str) -> dict[str, Any]:
    """What a script of another Python process wrote; nothing of it leaves the folder, or asks the network."""
    out = folder / "out.json"
    homes = {name: str(folder / name) for name in ("HF_HOME", "HF_DATASETS_CACHE", "XDG_DATA_HOME")}
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OPENAI_API_KEY": "none"}
    done = subprocess.run(
        [sys.executable, "-c", script, *args, str(out)],
        env={**os.environ, **homes, **quiet},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, Any] = json.loads(out.read_text())
    return told


def test_lm_eval_scores_choices_and_texts(address: str, tmp_path: Path) -> None:
    if find_spec("lm_eval") is None:
        pytest.skip("lm_eval is not installed")
    file = tmp_path / "questions.json"
    file.write_text("\n".join(map(json.dumps, QUESTIONS)))
    for name, task in (("choice", CHOICE_TASK), ("text", TEXT_TASK)):
        (tmp_path / f"{name}.yaml").write_text(task.format(file=file))
    told = run(LM_EVAL, tmp_path, address, str(tmp_path), str(resolve(MODEL)))
    assert 0 <= told["results"]["small_choice"]["acc,none"] <= 1
    assert len(told["samples"]["small_text"]) == 3
    with httpx.Client(base_url=address, timeout=60) as http:
        for question, scored in zip(QUESTIONS, told["samples"]["small_choice"], strict=True):
            for choice, ((theirs, _),) in zip(question["choices"], scored, strict=True):  # type: ignore[call-overload]
                assert theirs == pytest.approx(logprob(http, question["question"], f" {choice}"), abs=1e-3)


def logprob(http: httpx.Client, text: str, more: str) -> float:
    """Of the second text behind the first, asked for in another way than lm_eval does."""
    whole, first = (
        http.post("/tokenize", json={"prompt": t, "add_special_tokens": False}).json()["tokens"]
        for t in (text + more, text)
    )
    body = {"model": MODEL, "prompt": whole, "max_tokens": 1, "prompt_logprobs": 0}
    entries = http.post("/v1/completions", json=body).json()["choices"][0]["prompt_logprobs"]
    told = [entry[str(t)]["logprob"] for t, entry in zip(whole[1:], entries[1:], strict=True)]
    return float(sum(told[len(first) - 1 :]))


def test_inspect_ai_runs_a_task(address: str, tmp_path: Path) -> None:
    if find_spec("inspect_ai") is None:
        pytest.skip("inspect_ai is not installed")
    told = run(INSPECT, tmp_path, address, str(tmp_path))
    assert told["status"] == "success", told["error"]
    assert len(told["told"]) == 3
