"""Fine-tuning in slices learns what ordinary fine-tuning learns, in the same order, and ends cleanly."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightwork import models
from lightwork.errors import LightworkError, SpecError
from lightwork.models.model import Model
from lightwork.models.transformer import block, rotary
from lightwork.serve.training import Slice, Training, Update
from lightwork.train.examples import Example, read_examples
from lightwork.train.finetune import FineTuning, Schedule
from lightwork.train.frozen import Tensors
from lightwork.train.lora import Lora
from lightwork.train.pretrain import dense_attention
from lightwork.train.windows import Frozen

Make = Callable[..., Path]
SCHEDULE = Schedule(epochs=2, batch=3, learning_rate=1e-2, warmup=2)


@pytest.fixture(scope="module")
def model(checkpoint: Make) -> Model:
    return models.load(str(checkpoint("llama")), dtype="float32", device="cpu")


def examples(model: Model, num: int = 7) -> list[Example]:
    rng = Random(0)
    made = []
    for _ in range(num):
        tokens = [rng.randrange(model.spec.vocab_size) for _ in range(rng.randrange(5, 30))]
        made.append(Example(tokens, [i > 2 for i in range(len(tokens))]))
    return made


def lora(model: Model, modules: Sequence[str] = ()) -> Lora:
    return Lora(model.spec, rank=4, alpha=8, modules=modules)


def train(job: FineTuning, limits: Callable[[], int]) -> list[Update]:
    training, updates = Training(job.lengths, job.num_layers), []
    while not training.finished:
        slices = training.ahead(limits())
        updates += job.run(slices)
        training.move(slices)
    return updates


def ordinary(frozen: Frozen, adapter: Lora, data: Sequence[Example], schedule: Schedule) -> list[float]:
    """One forward and backward per sequence, with torch's own optimizer and schedule."""
    order = [*data] * schedule.epochs
    total = -(-len(order) // schedule.batch)
    optimizer = torch.optim.AdamW([*adapter], lr=schedule.learning_rate, weight_decay=0.0)
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1 - step / total, (step + 1) / schedule.warmup)
    )
    losses = []
    for first in range(0, len(order), schedule.batch):
        batch = order[first : first + schedule.batch]
        predicted = sum(sum(example.predicted[1:]) for example in batch)
        loss = torch.stack([_nats(frozen, adapter, example) for example in batch]).sum() / predicted
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([*adapter], schedule.max_norm)
        optimizer.step()
        rates.step()
        losses.append(float(loss.detach()))
    return losses


def _nats(frozen: Frozen, adapter: Lora, example: Example) -> Tensor:
    spec, tokens = frozen.spec, torch.tensor(example.tokens)
    positions = torch.arange(len(tokens))
    x = frozen.embed(tokens, positions)
    cos_sin = rotary(spec.rope, spec.head_size, positions, frozen.dtype)
    for i in range(spec.num_layers):
        x = block(i, x, frozen.layer(i), spec, cos_sin, dense_attention(1, spec), adapter.adapt)
    losses = F.cross_entropy(frozen.score(x)[:-1], tokens[1:], reduction="none")
    return losses[torch.tensor(example.predicted[1:])].sum()


@pytest.mark.parametrize("limit", [1, 37, 10_000])
def test_the_loss_curve_is_that_of_ordinary_fine_tuning(model: Model, limit: int) -> None:
    frozen, data = Tensors(model.spec, model.weights), examples(model)
    want_lora, got_lora = lora(model), lora(model)
    want = ordinary(frozen, want_lora, data, SCHEDULE)
    job = FineTuning(frozen, got_lora, data, SCHEDULE)
    updates = train(job, lambda: limit)
    assert [update.number for update in updates] == [1, 2, 3, 4, 5]
    assert updates[-1].tokens == 2 * sum(len(example.tokens) for example in data)
    assert [update.loss for update in updates] == pytest.approx(want, rel=1e-5)
    assert want[-1] < want[0]
    for got, expected in zip(got_lora, want_lora, strict=True):
        assert (got - expected).abs().max() < 1e-4


def test_a_loss_that_is_no_number_ends_the_job(model: Model) -> None:
    frozen = Tensors(model.spec, model.weights)
    adapter = lora(model)
    with torch.no_grad():
        next(iter(adapter)).fill_(torch.nan)
    job = FineTuning(frozen, adapter, examples(model), SCHEDULE)
    with pytest.raises(LightworkError, match="the loss is nan in update 1"):
        train(job, lambda: 100)


def test_a_job_that_is_closed_half_way_back_holds_nothing_but_its_adapter(model: Model) -> None:
    frozen, adapter = Tensors(model.spec, model.weights), lora(model)
    job = FineTuning(frozen, adapter, examples(model), SCHEDULE)
    own_bytes = sum(p.nbytes for p in adapter)
    training = Training(job.lengths, job.num_layers)
    while not (slices := training.ahead(3))[0].back or slices[0].layer:
        job.run(slices)
        training.move(slices)
    assert job.nbytes > own_bytes
    job.close()
    assert job.nbytes == own_bytes
    assert job.run([Slice(0, 0, 1)]) == []


def test_examples_are_read_in_every_form(model: Model, tmp_path: Path) -> None:
    file, tokenizer = tmp_path / "data.jsonl", model.tokenizer
    file.write_text('{"text": "one two"}\n\n{"prompt": "one", "completion": " two"}\n')
    whole, split = read_examples(file, tokenizer, 100)
    assert all(whole.predicted)
    num_prompt = len(tokenizer.encode("one", add_special=True))
    assert split.predicted == [False] * num_prompt + [True] * (len(split.tokens) - num_prompt)
    assert split.tokens[-1] in tokenizer.eos_ids


def test_answers_of_a_conversation_are_learnt_and_nothing_else(tmp_path: Path) -> None:
    tokenizer = models.load("tiny:llama", dtype="float32", device="cpu").tokenizer
    file = tmp_path / "data.jsonl"
    messages = [
        {"role": "user", "content": "ab cd"},
        {"role": "assistant", "content": "ef"},
        {"role": "user", "content": "gh"},
        {"role": "assistant", "content": "ij kl"},
    ]
    file.write_text(json.dumps({"messages": messages}))
    (example,) = read_examples(file, tokenizer, 1000)
    learnt = tokenizer.decode([t for t, p in zip(example.tokens, example.predicted, strict=True) if p])
    given = tokenizer.decode([t for t, p in zip(example.tokens, example.predicted, strict=True) if not p])
    assert all(word in learnt for word in ("ef", "ij kl"))
    assert all(word in given for word in ("ab cd", "gh"))
    assert not any(word in learnt for word in ("ab", "gh"))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "line 1 .* is not JSON"),
        ("[" * 100_000, "line 1 .* is not JSON"),
        ("[1]", "line 1 .* is not an object"),
        ('{"text": 3}', "none of the known forms"),
        ('{"text": "one two"}\n{"messages": [3]}', "line 2 .* without role or content"),
        ('{"prompt": "a"}', "none of the known forms"),
        ("", "is empty"),
        ('{"text": "' + "word " * 200 + '"}', "example 1 .* tokens"),
    ],
)
def test_bad_files_are_refused_by_line(model: Model, tmp_path: Path, text: str, what: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(text)
    with pytest.raises(SpecError, match=what):
        read_examples(file, model.tokenizer, 50)
    with pytest.raises(SpecError, match="cannot be read"):
        read_examples(tmp_path / "none", model.tokenizer, 50)
