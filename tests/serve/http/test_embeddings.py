"""/v1/embeddings: the last token's hidden state as transformers computes it, in both forms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest

from lightwork.serve.http.main import BackgroundServer, load
from lightwork.serve.plan import Plan

NAME = "tiny"


def test_embeddings_equal_transformers(client: openai.OpenAI, checkpoint: Callable[..., Path]) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    texts = [[*range(60, 90)], [7], [*range(200)]]
    made = client.embeddings.create(model=NAME, input=texts, encoding_format="float")
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint("llama")).eval()
    for text, ours in zip(texts, made.data, strict=True):
        with torch.no_grad():
            state = model(torch.tensor([text]), output_hidden_states=True).hidden_states[-1][0, -1]
        assert ours.embedding == pytest.approx((state / state.norm()).tolist(), abs=2e-4)
    assert [ours.index for ours in made.data] == [0, 1, 2]
    assert made.usage.prompt_tokens == 231


def test_base64_holds_the_same_numbers(client: openai.OpenAI, http: httpx.Client) -> None:
    plain = client.embeddings.create(model=NAME, input="Hello", encoding_format="float").data[0].embedding
    packed = client.embeddings.create(model=NAME, input="Hello").data[0].embedding  # base64, unpacked by it
    assert np.allclose(plain, packed, atol=1e-7)
    assert np.linalg.norm(packed) == pytest.approx(1)
    raw = http.post("/v1/embeddings", json={"model": NAME, "input": ["Hello"], "encoding_format": "base64"})
    assert isinstance(raw.json()["data"][0]["embedding"], str)


def test_embeddings_leave_replies_that_are_generated_meanwhile_as_they_are(client: openai.OpenAI) -> None:
    def text() -> str:
        body = {"model": NAME, "prompt": "Hello", "max_tokens": 60, "temperature": 0, "stream": True}
        pieces = client.completions.create(**body, logprobs=2, extra_body={"ignore_eos": True})  # type: ignore[call-overload]
        said = ""
        for event in pieces:
            said += event.choices[0].text if event.choices else ""
            if between:
                client.embeddings.create(model=NAME, input=[[*range(100)]] * 2)
        return said

    between = False
    alone = text()
    between = True
    assert text() == alone


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"input": [9999]}, "input"),
        ({"input": []}, "input"),
        ({"input": "x" * 400}, "256"),
        ({"dimensions": 3}, "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format"),
    ],
    ids=str,
)
def test_what_cannot_be_embedded_is_refused(http: httpx.Client, fields: dict[str, object], word: str) -> None:
    reply = http.post("/v1/embeddings", json={"model": NAME, "input": "x", **fields})
    assert reply.status_code == 400
    assert word in reply.json()["error"]["message"]


def test_torch_and_the_compiled_step_embed_alike(
    checkpoint: Callable[..., Path], http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"model": NAME, "input": [[*range(60, 90)]]}
    compiled = http.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    monkeypatch.setattr("lightwork.serve.opening.compiles", lambda place: False)
    loaded = load(Plan(model=str(checkpoint("llama")), max_len=256), name=NAME)
    with BackgroundServer(loaded) as url:
        plain = httpx.post(f"{url}/v1/embeddings", json=body, timeout=60).json()["data"][0]["embedding"]
    assert plain == pytest.approx(compiled, abs=2e-4)
