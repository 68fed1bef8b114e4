"""The built-in models: small, lossless to read, and as good on unseen tools as their recipes say."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

import lightwork.models
from lightwork.agents.worlds.lessons import chat
from lightwork.agents.worlds.plan_world import PlanWorld
from lightwork.agents.worlds.score import score, write_plan
from lightwork.errors import UsageError
from lightwork.models import Model
from lightwork.models.spec import read_spec

BUILTIN = Path(lightwork.models.__file__).parent / "builtin"
NAMES = ("llama", "draft")


@cache
def load(name: str) -> Model:
    return lightwork.models.load(f"tiny:{name}")


@cache
def raw_tokenizer() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(BUILTIN / "llama" / "tokenizer.json"))


def recipe(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((BUILTIN / name / "recipe.json").read_text())
    return value


@given(st.text())
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = load("llama").tokenizer
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    "text", ["", " ", "\r\n\t", "漢字 é é 👩‍👩‍👧", "\x00\u2028\ufeff", " join()\n12. $7"]
)
def test_odd_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = load("llama").tokenizer
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_words_of_the_world_are_single_tokens_and_names_are_two() -> None:
    episode = PlanWorld().sample(Random(0), 1)
    num_tokens = len(raw_tokenizer().encode(episode.gold).ids)
    assert num_tokens == 7, episode.gold


def test_both_models_read_with_the_same_tokenizer() -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (BUILTIN / "llama" / file).read_bytes() == (BUILTIN / "draft" / file).read_bytes()


def test_the_chat_template_writes_what_the_models_were_trained_on() -> None:
    first, second = PlanWorld().dialogue(Random(1), [2, 1])
    messages = [
        {"role": "user", "content": first.prompt},
        {"role": "assistant", "content": first.gold},
        {"role": "user", "content": second.prompt},
    ]
    tokens, scored, _ = chat(raw_tokenizer(), [first, second])
    prompt = tokens[: len(tokens) - scored[::-1].index(False)]
    assert load("llama").tokenizer.chat(messages) == prompt
    with pytest.raises(UsageError, match="unknown role"):
        load("llama").tokenizer.chat([{"role": "poet", "content": "x"}])


def test_the_weights_are_small() -> None:
    assert sum(f.stat().st_size for f in BUILTIN.rglob("*.safetensors")) <= 8 << 20
    llama, draft = (read_spec(BUILTIN / name) for name in NAMES)
    assert 1_000_000 <= llama.num_params <= 4_000_000
    assert draft.num_params * 4 <= llama.num_params
    assert llama.max_len >= 2048


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_is_of_these_weights(name: str) -> None:
    written, spec = recipe(name), read_spec(BUILTIN / name)
    for field in ("hidden_size", "num_layers", "num_heads", "ffn_size"):
        assert written[field] == getattr(spec, field)
    assert written["parameters"] == pytest.approx(spec.num_params, rel=0.01)
    assert [s["level"] for s in written["scores"]] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "level", "exact", "token_share"),
    [("llama", 1, 0.95, 0.99), ("llama", 2, 0.95, 0.99), ("draft", 1, 0.95, 0.99), ("draft", 2, 0.9, 0.97)],
)
def test_held_out_questions(name: str, level: int, exact: float, token_share: float) -> None:
    model = load(name)
    found = score(model.weights, model.spec, raw_tokenizer(), level, 100, seed=1)
    assert found.exact >= exact * found.questions
    assert found.answered >= found.exact
    assert found.token_hits >= token_share * found.tokens


def test_the_target_writes_a_plan_and_stops() -> None:
    model, episode = load("llama"), PlanWorld(split="heldout").sample(Random(3), 2)
    assert episode.check(write_plan(model.weights, model.spec, raw_tokenizer(), episode.prompt)).answered


@pytest.mark.peer
@pytest.mark.parametrize("name", NAMES)
def test_transformers_loads_the_folder_and_writes_the_same_plan(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    model, episode = load(name), PlanWorld(split="heldout").sample(Random(4), 2)
    peer = transformers.AutoModelForCausalLM.from_pretrained(BUILTIN / name, dtype="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(BUILTIN / name)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": episode.prompt}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = peer.generate(**inputs, max_new_tokens=192)[0, inputs["input_ids"].shape[1] :]
    theirs = tokenizer.decode(output, skip_special_tokens=True)
    assert theirs == write_plan(model.weights, model.spec, raw_tokenizer(), episode.prompt)
