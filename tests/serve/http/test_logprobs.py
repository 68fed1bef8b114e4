"""Log-probabilities over HTTP are transformers', of prompts and replies, whole and streamed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from lightwork.models.tokenizer import Tokenizer
from lightwork.serve.http.replies import token_name

NAME = "tiny"
IDS = [int(t) for t in range(60, 84)]
TOLERANCE = 1e-4
Logprobs = Callable[[list[int]], Any]


@pytest.fixture(scope="module")
def right(checkpoint: Callable[..., Path]) -> Logprobs:
    """right(tokens)[i, t]: of token t behind the first i + 1 tokens."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint("llama")).eval()

    def compute(tokens: list[int]) -> Any:
        with torch.no_grad():
            return model(torch.tensor([tokens])).logits[0].log_softmax(-1)

    return compute


@pytest.mark.peer
def test_prompt_logprobs_equal_transformers(http: httpx.Client, right: Logprobs) -> None:
    body = {"model": NAME, "prompt": IDS, "max_tokens": 1, "prompt_logprobs": 3}
    entries = http.post("/v1/completions", json=body).json()["choices"][0]["prompt_logprobs"]
    expected = right(IDS)
    assert entries[0] is None
    for i, entry in enumerate(entries[1:]):
        best = expected[i].topk(3)
        assert {str(t) for t in best.indices.tolist()} | {str(IDS[i + 1])} == entry.keys()
        for token, told in entry.items():
            assert told["logprob"] == pytest.approx(expected[i, int(token)].item(), abs=TOLERANCE)


@pytest.mark.peer
def test_top_logprobs_of_a_reply_equal_transformers(
    http: httpx.Client, right: Logprobs, checkpoint: Callable[..., Path]
) -> None:
    """Of a sampled reply with a bias and penalties: they are the model's own, before all that."""
    how = {"temperature": 1.3, "seed": 4, "logit_bias": {"70": 3}, "frequency_penalty": 1.0, "top_p": 0.9}
    body = {"model": NAME, "prompt": IDS, "max_tokens": 6, "logprobs": 5, "ignore_eos": True, **how}
    told = http.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
    tokenizer = Tokenizer(checkpoint("llama"))
    of_name = {token_name(t, tokenizer): t for t in range(320)}
    assert len(of_name) == 320
    reply = [of_name[name] for name in told["tokens"]]
    expected = right(IDS + reply)[len(IDS) - 1 : -1]
    for i, token in enumerate(reply):
        assert told["token_logprobs"][i] == pytest.approx(expected[i, token].item(), abs=TOLERANCE)
        best = expected[i].topk(5).values.tolist()
        assert sorted(told["top_logprobs"][i].values(), reverse=True) == pytest.approx(best, abs=TOLERANCE)


def test_streamed_logprobs_are_those_of_the_whole_reply(http: httpx.Client) -> None:
    body = {"model": NAME, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 10, "seed": 2}
    asked = {**body, "logprobs": True, "top_logprobs": 2, "temperature": 1.0}
    whole = http.post("/v1/chat/completions", json=asked).json()["choices"][0]["logprobs"]["content"]
    streamed: list[Any] = []
    for line in http.post("/v1/chat/completions", json={**asked, "stream": True}).text.splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                streamed += (choice["logprobs"] or {"content": []})["content"]
    assert streamed == whole


def test_bytes_of_tokens_join_to_the_text(http: httpx.Client) -> None:
    """Half characters too, of which a random model writes many."""
    body = {"model": NAME, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 60, "seed": 1}
    asked = {**body, "logprobs": True, "temperature": 1.0, "ignore_eos": True}
    choice = http.post("/v1/chat/completions", json=asked).json()["choices"][0]
    told = choice["logprobs"]["content"]
    raw = b"".join(bytes(token["bytes"]) for token in told)
    assert any(token["token"].startswith("bytes:") for token in told)
    assert raw.decode(errors="replace") == choice["message"]["content"]


def test_every_choice_of_the_most_probable_tokens_has_a_name_of_its_own(http: httpx.Client) -> None:
    body = {"model": NAME, "prompt": IDS, "max_tokens": 8, "logprobs": 20, "temperature": 0}
    told = http.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
    assert {len(top) for top in told["top_logprobs"]} == {20}
