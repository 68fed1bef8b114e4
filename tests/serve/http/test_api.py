"""The OpenAI contract over real HTTP, with the official client."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import httpx
import openai
import pytest

from lightwork.serve.http.main import Loaded

NAME = "tiny"
HELLO = [{"role": "user", "content": "Hello"}]
Idle = Callable[[], None]


def chat(client: openai.OpenAI, **settings: object) -> openai.types.chat.ChatCompletion:
    asked = {"model": NAME, "messages": HELLO, "max_tokens": 12, "temperature": 0.0, **settings}
    return client.chat.completions.create(**asked)  # type: ignore[call-overload]


def complete(client: openai.OpenAI, **settings: object) -> openai.types.Completion:
    return client.completions.create(
        model=NAME,
        **{"prompt": "Hello", "max_tokens": 12, "temperature": 0.0, **settings},  # type: ignore[call-overload]
    )


def test_a_streamed_reply_is_the_whole_reply_in_pieces(client: openai.OpenAI, idle: Idle) -> None:
    whole = chat(client, n=2, temperature=1.0, seed=7)
    texts = {0: "", 1: ""}
    reasons: dict[int, str | None] = {}
    usage = None
    stream = chat(client, n=2, temperature=1.0, seed=7, stream=True, stream_options={"include_usage": True})
    for event in stream:  # type: ignore[attr-defined]
        usage = event.usage or usage
        for choice in event.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason
    assert [texts[i] for i in (0, 1)] == [c.message.content for c in whole.choices]
    assert [reasons[i] for i in (0, 1)] == [c.finish_reason for c in whole.choices]
    assert usage is not None
    assert whole.usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (
        whole.usage.prompt_tokens,
        whole.usage.completion_tokens,
    )
    assert texts[0] != texts[1]


def test_a_seed_gives_one_reply_and_other_seeds_others(client: openai.OpenAI) -> None:
    replies = [chat(client, temperature=1.0, seed=s).choices[0].message.content for s in (1, 1, 2, 3)]
    assert replies[0] == replies[1]
    assert len(set(replies)) >= 3
    unseeded = {chat(client, temperature=1.0).choices[0].message.content for _ in range(4)}
    assert len(unseeded) >= 3


def test_usage_and_timings_add_up(client: openai.OpenAI) -> None:
    long = [{"role": "user", "content": "Which tools are there, and what does each of them do? " * 2}]
    chat(client, messages=long)
    reply = chat(client, messages=long, max_completion_tokens=5)
    usage = reply.usage
    assert usage is not None
    assert usage.completion_tokens == 5
    assert usage.total_tokens == usage.prompt_tokens + 5
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 64  # one whole block
    timings = reply.model_extra["timings"]  # type: ignore[index]
    assert {"queue_ms", "prefill_ms", "decode_ms", "drafted", "accepted"} <= timings.keys()


def test_chat_logprobs_are_probabilities_of_the_text(client: openai.OpenAI) -> None:
    reply = chat(client, logprobs=True, top_logprobs=20, max_tokens=4)
    content = reply.choices[0].logprobs.content  # type: ignore[union-attr]
    assert content is not None
    assert len(content) == 4
    for token in content:
        assert token.logprob == pytest.approx(token.top_logprobs[0].logprob)
        assert [t.logprob for t in token.top_logprobs] == sorted(
            (t.logprob for t in token.top_logprobs), reverse=True
        )
        assert 0 < sum(math.exp(t.logprob) for t in token.top_logprobs) <= 1.0001
        written = token.token.startswith(("bytes:", "token_id:"))  # half a character, or no text
        assert written or bytes(token.bytes or []).decode() == token.token


@pytest.mark.peer
def test_logprobs_equal_transformers(client: openai.OpenAI, checkpoint: Callable[..., object]) -> None:
    import torch
    import transformers

    ids = [int(t) for t in range(60, 90)]
    reply = complete(client, prompt=ids, max_tokens=6, logprobs=1, echo=True)
    got = reply.choices[0].logprobs
    assert got is not None
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint("llama")).eval()
    with torch.no_grad():
        out = model.generate(
            torch.tensor([ids]), max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None
        )
        expected = model(out).logits[0].log_softmax(-1)
    right = [expected[i, int(out[0, i + 1])].item() for i in range(out.shape[1] - 1)]
    assert got.token_logprobs is not None
    assert got.token_logprobs[0] is None
    assert got.token_logprobs[1:] == pytest.approx(right, abs=1e-4)


def test_prompt_logprobs_come_one_per_token(http: httpx.Client) -> None:
    body = {"model": NAME, "prompt": [5, 6, 7, 8], "max_tokens": 2, "prompt_logprobs": 2, "temperature": 0}
    entries = http.post("/v1/completions", json=body).json()["choices"][0]["prompt_logprobs"]
    assert entries[0] is None
    assert [str(t) in entry for t, entry in zip((6, 7, 8), entries[1:], strict=True)] == [True] * 3


def test_echo_and_token_ids_and_several_prompts(client: openai.OpenAI) -> None:
    plain = complete(client).choices[0].text
    assert complete(client, echo=True).choices[0].text == "Hello" + plain
    ids = client.post("/../tokenize", body={"prompt": "Hello"}, cast_to=httpx.Response).json()["tokens"]
    assert complete(client, prompt=ids).choices[0].text == plain
    several = complete(client, prompt=["Hello", "Bye"], n=2)
    assert [c.index for c in several.choices] == [0, 1, 2, 3]
    assert several.choices[0].text == several.choices[1].text == plain
    streamed = "".join(c.text for e in complete(client, echo=True, stream=True) for c in e.choices)  # type: ignore[attr-defined]
    assert streamed == "Hello" + plain


def test_a_stop_string_ends_the_text_before_it_wherever_tokens_end(client: openai.OpenAI) -> None:
    text = chat(client, max_tokens=40).choices[0].message.content
    assert text is not None
    printable = [i for i in range(3, len(text) - 3) if text[i : i + 3].isprintable()]
    stop = text[printable[0] : printable[0] + 3]
    reply = chat(client, max_tokens=40, stop=[stop, "never in it"])
    assert reply.choices[0].message.content == text[: text.index(stop)]
    assert reply.choices[0].finish_reason == "stop"
    pieces = [
        c.delta.content or ""
        for e in chat(client, max_tokens=40, stop=stop, stream=True)  # type: ignore[attr-defined]
        for c in e.choices
    ]
    assert "".join(pieces) == text[: text.index(stop)]


def test_logit_bias_forces_a_token_and_penalties_are_heard(client: openai.OpenAI) -> None:
    assert (
        complete(client, logit_bias={"65": 100}, max_tokens=3).choices[0].text
        == complete(client, logit_bias={"65": 100}, max_tokens=3, stream=False).choices[0].text
    )
    ids = complete(client, logit_bias={"65": 100}, max_tokens=3, logprobs=0).choices[0].logprobs
    assert ids is not None
    assert len(set(ids.tokens or [])) == 1
    biased = complete(client, logit_bias={"65": 3}, max_tokens=30).choices[0].text
    punished = complete(client, logit_bias={"65": 3}, max_tokens=30, frequency_penalty=2.0).choices[0].text
    assert biased != punished
    extra = {"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.0, "ignore_eos": True}
    assert complete(client, temperature=1.0, extra_body=extra).usage is not None


def test_messages_of_parts_and_other_roles(client: openai.OpenAI) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}]
    assert chat(client).choices[0].message.content == chat(client, messages=parts).choices[0].message.content


def test_models_tokens_and_health(client: openai.OpenAI, http: httpx.Client) -> None:
    assert [m.id for m in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME
    tokens = http.post("/tokenize", json={"prompt": "héllo"}).json()
    assert http.post("/detokenize", json={"tokens": tokens["tokens"]}).json() == {"prompt": "héllo"}
    assert http.post("/tokenize", json={"messages": HELLO}).json()["count"] > 5
    assert http.get("/health").json() == {"status": "alive"}
    assert http.get("/ready").json() == {"status": "ready"}
    assert http.get("/openapi.json").json()["info"]["title"] == "lightwork"


def test_a_request_id_is_kept_or_made(http: httpx.Client) -> None:
    assert http.get("/health", headers={"x-request-id": "mine"}).headers["x-request-id"] == "mine"
    assert len(http.get("/health").headers["x-request-id"]) >= 16


def test_unknown_fields_are_named_and_unsupported_ones_refused(http: httpx.Client) -> None:
    body = {"model": NAME, "messages": HELLO, "max_tokens": 1}
    reply = http.post("/v1/chat/completions", json={**body, "temprature": 2, "user": "me"})
    assert reply.status_code == 200
    assert reply.headers["x-lightwork-ignored"] == "temprature"
    refusals = {
        "store": True,
        "response_format": {"type": "xml"},
        "tools": [{"type": "function", "function": {"name": "f"}}] * 2,
        "tool_choice": "required",
        "audio": {"voice": "x"},
        "functions": [{"name": "f"}],
        "top_logprobs": 3,
        "chat_template_kwargs": {"self": 1},
        "stream_options": {"include_usage": True},
    }
    for field, value in refusals.items():
        reply = http.post("/v1/chat/completions", json={**body, field: value})
        assert reply.status_code == 400, field
        error = reply.json()["error"]
        assert error["param"] == field
        assert field in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/v1/chat/completions", {"model": "other", "messages": HELLO}, 404, NAME),
        ("/v1/chat/completions", {"model": NAME, "messages": []}, 400, "messages"),
        ("/v1/chat/completions", {"model": NAME, "messages": HELLO, "temperature": -1}, 400, "temperature"),
        ("/v1/chat/completions", {"model": NAME, "messages": HELLO, "max_tokens": 4000}, 400, "256"),
        ("/v1/completions", {"model": NAME, "prompt": "x" * 500}, 400, "256"),
        ("/v1/completions", {"model": NAME, "prompt": [9999]}, 400, "prompt"),
        ("/v1/completions", {"model": NAME, "prompt": []}, 400, "prompt"),
        ("/v1/completions", {"model": NAME, "prompt": "x", "n": 0}, 400, "n"),
        ("/v1/completions", {"model": NAME, "prompt": "x", "logit_bias": {"z": 1}}, 400, "logit_bias"),
        ("/v1/completions", [], 400, "body"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens"),
        ("/nowhere", {}, 404, "docs"),
    ],
    ids=str,
)
def test_errors_have_openais_shape_and_three_parts(
    http: httpx.Client, path: str, body: object, status: int, words: str
) -> None:
    reply = http.post(path, json=body)
    error = reply.json()["error"]
    assert reply.status_code == status
    assert error.keys() == {"message", "type", "param", "code"}
    assert words in error["message"]
    assert "expected: " in error["message"]


def test_broken_json_and_wrong_methods(http: httpx.Client) -> None:
    for content in (b"{", b"\xff\xfe", b"null", b'{"model": NaN}', b"[" * 5000):
        assert http.post("/v1/completions", content=content).status_code == 400
    assert http.get("/v1/completions").status_code == 405


def test_a_long_body_is_refused_before_it_is_read(http: httpx.Client) -> None:
    big = json.dumps({"model": NAME, "prompt": "x" * 10_000_000}).encode()
    assert http.post("/v1/completions", content=big).status_code == 413

    def pieces() -> object:
        for _ in range(160):
            yield b"x" * 65_536

    assert http.post("/v1/completions", content=pieces()).status_code == 413  # type: ignore[arg-type]


FROZEN = [
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "lora_requests_info",
    "prompt_tokens_total",
    "generation_tokens_total",
    "embedded_texts_total",
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
    "num_preemptions_total",
    "request_success_total",
    "spec_decode_num_draft_tokens_total",
    "spec_decode_num_accepted_tokens_total",
    "training_tokens_total",
    "training_loss",
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
    "request_prompt_tokens",
    "request_generation_tokens",
]


def read_metrics(http: httpx.Client) -> dict[str, float]:
    lines = [line for line in http.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_metric_names_are_frozen_and_values_move(
    http: httpx.Client, client: openai.OpenAI, loaded: Loaded
) -> None:
    long = [{"role": "user", "content": "a prompt of more than one block of keys and values, " * 2}]
    chat(client, messages=long, max_tokens=3)
    before = read_metrics(http)
    kinds = [line.split()[2:] for line in http.get("/metrics").text.splitlines() if line.startswith("# TYPE")]
    families = sorted(name for name, _ in kinds if not name.endswith("_created"))
    assert families == sorted(f"lightwork_{name}" for name in FROZEN)
    chat(client, messages=long, max_tokens=5)
    after = read_metrics(http)
    assert after["lightwork_generation_tokens_total"] - before["lightwork_generation_tokens_total"] == 5
    key = 'lightwork_request_success_total{finished_reason="length"}'
    assert after[key] - before[key] == 1
    assert (
        after["lightwork_time_to_first_token_seconds_count"]
        > before["lightwork_time_to_first_token_seconds_count"]
    )
    assert after["lightwork_prefix_cache_hits_total"] > before["lightwork_prefix_cache_hits_total"]
    assert after["lightwork_num_requests_running"] == 0
