"""/v1/embeddings: hidden states as transformers computes them, pooled as the checkpoint says."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import tokenizers

from lightwork.errors import CheckpointError
from lightwork.models.pooling import FIELDS, MODES, Pooling, read_dimensions, read_pooling
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
        ({"dimensions": 3}, "expected: 32: what the model was trained for"),
        ({"dimensions": 0}, "dimensions"),
        ({"input": [[1]] * 2049}, "2049 texts"),
        ({"input": [[1]] * 601}, "1 to 600"),
        ({"truncate_prompt_tokens": 257}, "-1, or 1 to 256"),
        ({"truncate_prompt_tokens": 0}, "-1, or 1 to 256"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
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


def test_a_thousand_texts_of_a_request_have_a_vector_each(
    checkpoint: Callable[..., Path], http: httpx.Client
) -> None:
    """Strings and token ids, in their order; counted, in the metrics too."""
    loaded = load(Plan(model=str(checkpoint("llama")), max_len=256), name=NAME)
    texts = [f"{i % 50}" for i in range(1000)]
    with BackgroundServer(loaded) as url, httpx.Client(base_url=url, timeout=60) as own:
        reply = own.post("/v1/embeddings", json={"model": NAME, "input": texts}).json()
        ids = [own.post("/tokenize", json={"prompt": text}).json()["tokens"] for text in texts[:50]]
        same = own.post("/v1/embeddings", json={"model": NAME, "input": ids}).json()
        metrics = own.get("/metrics").text
    assert [each["index"] for each in reply["data"]] == [*range(1000)]
    vectors, by_ids = (np.array([e["embedding"] for e in each["data"]]) for each in (reply, same))
    assert np.abs(vectors - np.tile(by_ids, (20, 1))).max() < 1e-6
    num_tokens = sum(map(len, ids))
    assert reply["usage"] == {"prompt_tokens": 20 * num_tokens, "total_tokens": 20 * num_tokens}
    assert "lightwork_embedded_texts_total 1050.0" in metrics
    assert f"lightwork_prompt_tokens_total {21 * num_tokens:.1f}" in metrics


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_vectors_are_cut_to_dimensions_that_a_model_was_trained_for(
    checkpoint: Callable[..., Path], tmp_path: Path, encoding: Any
) -> None:
    """The first numbers, of unit length again; all are always to be had."""
    shutil.copytree(checkpoint("llama"), tmp_path / "cut")
    config = json.loads((tmp_path / "cut" / "config.json").read_text())
    (tmp_path / "cut" / "config.json").write_text(json.dumps({**config, "matryoshka_dimensions": [8, 16]}))
    with (
        BackgroundServer(load(Plan(model=str(tmp_path / "cut"), max_len=256), name=NAME)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):

        def vector(**fields: Any) -> Any:
            made = client.embeddings.create(model=NAME, input="Hello", encoding_format=encoding, **fields)
            told: Any = made.data[0].embedding
            return np.frombuffer(base64.b64decode(told), "<f4") if encoding == "base64" else np.array(told)

        whole = vector()
        assert vector(dimensions=32).tolist() == whole.tolist()
        assert np.allclose(vector(dimensions=8), whole[:8] / np.linalg.norm(whole[:8]), atol=1e-6)
        assert vector(dimensions=16).shape == (16,)
        with pytest.raises(openai.BadRequestError, match="8 or 16 or 32"):
            vector(dimensions=9)


def test_a_checkpoint_says_where_vectors_may_end(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    def told(**fields: object) -> str:
        (tmp_path / "config.json").write_text(json.dumps(fields))
        return str(tmp_path)

    assert [*read_dimensions(told(), 64)] == [64]
    assert [*read_dimensions(told(is_matryoshka=True), 64)] == [*range(1, 65)]
    assert [*read_dimensions(told(matryoshka_dimensions=[32, 8]), 64)] == [8, 32, 64]
    for wrong in ([0], [65], ["8"], 8):
        with pytest.raises(CheckpointError, match="matryoshka_dimensions"):
            read_dimensions(told(matryoshka_dimensions=wrong), 64)


def test_a_text_that_is_too_long_is_cut_where_the_request_says_so(http: httpx.Client) -> None:
    def made(given: object, **fields: object) -> tuple[list[float], int]:
        reply = http.post("/v1/embeddings", json={"model": NAME, "input": given, **fields})
        assert reply.status_code == 200, reply.text
        return reply.json()["data"][0]["embedding"], reply.json()["usage"]["prompt_tokens"]

    ids = [*range(200), *range(100)]
    for asked, kept in ((-1, 256), (20, 20)):
        for side, cut in (("left", ids[-kept:]), ("right", ids[:kept])):
            ours, num_tokens = made(ids, truncate_prompt_tokens=asked, truncation_side=side)
            assert ours == pytest.approx(made(cut)[0], abs=1e-6)
            assert num_tokens == kept
    assert made(ids[:9], truncate_prompt_tokens=20) == made(ids[:9])
    assert made("abcdef", truncate_prompt_tokens=3)[0] == pytest.approx(made("def")[0], abs=1e-6)


def test_what_a_tokenizer_puts_around_a_text_is_not_cut(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """A beginning and an end, of whose state the vector is."""
    shutil.copytree(checkpoint("llama"), tmp_path / "around")
    file = tmp_path / "around" / "tokenizer.json"
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    specials = [("<s>", tokenizer.token_to_id("<s>")), ("</s>", tokenizer.token_to_id("</s>"))]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=specials
    )
    tokenizer.save(str(file))
    loaded = load(Plan(model=str(tmp_path / "around"), max_len=256), name=NAME)
    with BackgroundServer(loaded) as url, httpx.Client(base_url=url, timeout=60) as own:

        def made(given: object, **fields: object) -> httpx.Response:
            return own.post("/v1/embeddings", json={"model": NAME, "input": given, **fields})

        for side, text in (("left", "def"), ("right", "abc")):
            cut = made("abcdef", truncate_prompt_tokens=5, truncation_side=side).json()
            assert cut["usage"]["prompt_tokens"] == 5
            ours, whole = (each["data"][0]["embedding"] for each in (cut, made(text).json()))
            assert ours == pytest.approx(whole, abs=1e-6)
        refused = made("abcdef", truncate_prompt_tokens=2)
        assert refused.status_code == 400
        assert "3 to 256" in refused.json()["error"]["message"]


# -- pooling


def pooled(checkpoint: Path, folder: Path, told: dict[str, Any], *kinds: str) -> Path:
    """The checkpoint in sentence-transformers' layout."""
    shutil.copytree(checkpoint, folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(told))
    if kinds:
        modules = [
            {"idx": i, "name": str(i), "path": f"{i}_{kind}", "type": f"sentence_transformers.models.{kind}"}
            for i, kind in enumerate(kinds)
        ]
        (folder / "modules.json").write_text(json.dumps(modules))
    return folder


MEAN = {name: name == FIELDS["mean"] for name in FIELDS.values()} | {"include_prompt": True}


@pytest.mark.parametrize("compiled", [True, False])
def test_a_checkpoint_that_says_mean_gets_the_mean_of_its_states(
    checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    """Of every token, also where the compiled step computes them in several parts."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    if not compiled:
        monkeypatch.setattr("lightwork.serve.opening.compiles", lambda place: False)
    folder = pooled(checkpoint("llama"), tmp_path / "mean", MEAN, "Transformer", "Pooling", "Normalize")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    texts = [[*range(60, 90)], [7], [i % 200 for i in range(250)]]
    loaded = load(Plan(model=str(folder), max_len=256), name=NAME)
    with BackgroundServer(loaded) as url:
        body = {"model": NAME, "input": texts}
        made = httpx.post(f"{url}/v1/embeddings", json=body, timeout=60).json()["data"]
    for text, ours in zip(texts, made, strict=True):
        with torch.no_grad():
            state = model(torch.tensor([text]), output_hidden_states=True).hidden_states[-1][0].mean(0)
        assert ours["embedding"] == pytest.approx((state / state.norm()).tolist(), abs=2e-4)


def test_each_mode_is_what_its_name_says() -> None:
    states = np.array([[1.0, -2.0], [3.0, 4.0], [5.0, 1.0]], np.float32)
    made = {name: Pooling(modes=(name,)).vector(states).tolist() for name in MODES}
    assert made["cls"] == [1.0, -2.0]
    assert made["max"] == [5.0, 4.0]
    assert made["mean"] == [3.0, 1.0]
    assert made["mean_sqrt_len_tokens"] == pytest.approx([9 / 3**0.5, 3 / 3**0.5])
    assert made["weightedmean"] == pytest.approx([22 / 6, 9 / 6])
    assert made["lasttoken"] == [5.0, 1.0]
    assert Pooling(modes=("cls", "mean")).vector(states).tolist() == [1.0, -2.0, 3.0, 1.0]


def test_a_checkpoint_says_how_it_pools(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    plain = checkpoint("llama")
    assert read_pooling(str(plain)) == Pooling()
    older = {FIELDS["cls"]: True, FIELDS["mean"]: True, "word_embedding_dimension": 64}
    assert read_pooling(str(pooled(plain, tmp_path / "two", older))) == Pooling(modes=("cls", "mean"))
    newer = pooled(plain, tmp_path / "newer", {"pooling_mode": "lasttoken"})
    assert read_pooling(str(newer)) == Pooling()
    for name, told, kinds, word in (
        ("none", {FIELDS["mean"]: False}, (), "of nothing"),
        ("other", {"pooling_mode": "attention"}, (), "attention"),
        ("new", {"pooling_mode_attention": True}, (), "attention"),
        ("dense", MEAN, ("Transformer", "Pooling", "Dense"), "Dense"),
    ):
        with pytest.raises(CheckpointError, match=word):
            read_pooling(str(pooled(plain, tmp_path / name, told, *kinds)))


def test_a_request_cannot_choose_the_pooling(http: httpx.Client) -> None:
    reply = http.post("/v1/embeddings", json={"model": NAME, "input": "x", "pooling": "mean"})
    assert reply.headers["x-lightwork-ignored"] == "pooling"
