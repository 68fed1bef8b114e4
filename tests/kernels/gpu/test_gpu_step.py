"""The forward on the kernels against `Model.forward`, and served texts against those of torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lightwork import models
from lightwork.decode.constraints import Constraint, grammars
from lightwork.decode.proposers import Draft
from lightwork.decode.proposers.ngram import Ngram
from lightwork.decode.proposers.ppd import PPD
from lightwork.decode.sampling import Sampling
from lightwork.errors import CheckpointError
from lightwork.kernels.gpu.mirror import Mirror
from lightwork.kernels.gpu.tasks import TILES, check_blocks, plan_tasks
from lightwork.memory.kv import KVCache
from lightwork.models.gpu_step import GpuStep, _first_rows, supports
from lightwork.models.model import Model
from lightwork.models.pooling import Pooling
from lightwork.models.prompt_tokens import FILE, PromptTokens, write_prompt_tokens
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.serve.embedding import Text
from lightwork.serve.gpu_runner import GpuRunner
from lightwork.serve.local_runner import LocalRunner
from lightwork.serve.opening import runner_for
from lightwork.serve.plan import Plan, make_engine
from lightwork.serve.rows import build_rows
from lightwork.serve.schedulers import Chunk, Step
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import Request
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulate import run_load

Make = Callable[..., Path]
TEXT = np.random.default_rng(0).integers(0, 256, 40).tolist()
SMALL = {"num_hidden_layers": 2}
PAIRS = Constraint(kind="regex", text="a(b|c)(bc|d)*x{40}")


def logits(forward: Model | GpuStep, model: Model) -> list[torch.Tensor]:
    """Of a prefill beside a decode, a decode, and a tree with probes, through one cache."""
    model.set_probes(np.random.default_rng(1).normal(0, 0.2, (2, model.spec.hidden_size)).astype(np.float32))
    kv, pool = KVCache(16, 4), model.new_kv(16, 4)
    seqs = []
    for i, text in enumerate((TEXT[:15], TEXT[30:32])):
        kv.attach(i, ())
        request = Request(prompt=tuple(text), max_tokens=8, prompt_logprobs=0)
        seqs.append(Seq(i, request, request.sampling, None, 0.0, list(text), len(text)))
    long, short = seqs
    tree = Draft((7, 8, 9, -1, -2), (-1, -1, 0, 2, 3))
    steps = [
        Step(chunks=[Chunk(long, 0, 5), Chunk(short, 0, 1)]),
        Step(chunks=[Chunk(long, 5, 8)]),
        Step(chunks=[Chunk(long, 13, 2), Chunk(short, 1, 1)], drafts=[tree, Draft()]),
    ]
    out = []
    for step in steps:
        for i, chunk in enumerate(step.chunks):
            assert kv.reserve(chunk.seq.id, chunk.end + len(step.draft(i))) is not None
        out.append(forward.forward(build_rows(step, kv)[0], pool).clone())
        for chunk in step.chunks:
            kv.commit(chunk.seq.id, chunk.seq.tokens, chunk.end)
    return out


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("qwen2", {"sliding_window": 6, "max_window_layers": 1}),
        ("qwen3", {}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_logits_equal_those_of_the_reference(checkpoint: Make, family: str, config: dict[str, int]) -> None:
    model = models.load(str(checkpoint(family, **SMALL, **config)))
    step = GpuStep(model)
    for got, right in zip(logits(step, model), logits(model, model), strict=True):
        torch.testing.assert_close(got, right, atol=1e-4, rtol=0)
    assert step.num_graphs == 0


@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_other_families_are_left_to_torch(checkpoint: Make, family: str) -> None:
    model = models.load(str(checkpoint(family)))
    assert not supports(model.spec)
    with pytest.raises(CheckpointError, match="no GPU step"):
        GpuStep(model)


def test_served_texts_equal_those_of_torch(checkpoint: Make) -> None:
    """Greedy and sampled on the device, filtered and reported on the host, with drafts."""
    model = models.load(str(checkpoint("llama", num_hidden_layers=1)))
    repeated = (5, 6, 7, 8, 5, 6, 7)
    load = [
        Request(prompt=repeated, max_tokens=5, sampling=Sampling(temperature=0.0)),
        Request(prompt=tuple(TEXT[:4]), max_tokens=4, sampling=Sampling(temperature=1.2, seed=(1 << 64) - 3)),
        Request(prompt=tuple(TEXT[4:7]), max_tokens=4, sampling=Sampling(seed=3, top_p=0.8, logprobs=2)),
        Request(prompt=tuple(TEXT[4:8]), max_tokens=3, sampling=Sampling(seed=4), prompt_logprobs=1),
        Request(prompt=repeated, max_tokens=5, sampling=Sampling(temperature=0.0), constraint=PAIRS),
    ]
    size = model.spec.vocab_size
    constrain = grammars(model.tokenizer, size).matcher
    texts = []
    for runner in (GpuRunner, LocalRunner):
        kernel = Kernel(WallClock())
        plan, kv = Plan(use=(Ngram(k=2),)), KVCache(64, 4)
        engine = make_engine(plan, kernel, kv, runner(kernel, model, kv), 200, size, constrain=constrain)
        texts.append([seq.tokens for seq in run_load(engine, [0.0] * len(load), load)])
    assert texts[0] == texts[1]
    assert re.fullmatch("a[bc](bc|d)*(b|x*)", model.tokenizer.decode(texts[0][-1][len(repeated) :]))


def test_texts_are_embedded_beside_the_steps_on_the_device(checkpoint: Make) -> None:
    """By the model's own forward, as without the kernels; replies stay what they are."""
    model = models.load(str(checkpoint("llama", num_hidden_layers=1)))
    load = [Request(prompt=tuple(TEXT[:4]), max_tokens=5, sampling=Sampling(temperature=0.0))]
    texts = [Text(TEXT, "", Pooling(modes=modes)) for modes in (("lasttoken",), ("mean",))]
    found = []
    for runner, embeds in ((GpuRunner, True), (LocalRunner, True), (GpuRunner, False)):
        kernel, kv = Kernel(WallClock()), KVCache(64, 4)
        engine = make_engine(Plan(), kernel, kv, runner(kernel, model, kv), 200, model.spec.vocab_size)
        asked = [kernel.spawn(engine.embed(text)) for text in texts if embeds]
        (seq,) = run_load(engine, [0.0], load)
        found.append((seq.tokens, [*kernel.run(kernel.gather(*asked))]))
    (first, by_gpu), (second, by_torch), (third, _) = found
    assert first == second == third
    for ours, theirs in zip(by_gpu, by_torch, strict=True):
        assert np.abs(ours - theirs).max() < 1e-5


def test_probes_say_the_same_as_those_of_torch(checkpoint: Make, tmp_path: Path) -> None:
    model = models.load(str(checkpoint("llama", num_hidden_layers=1)))
    like = model.weights.embed[[9, 30]].numpy().copy()
    write_prompt_tokens(tmp_path / FILE, PromptTokens(like, np.array([[0.5, 0.3], [0.4, 0.2]])))
    load = [
        Request(prompt=tuple(TEXT[:4]), max_tokens=6, sampling=Sampling(temperature=0.0)),
        Request(prompt=tuple(TEXT[4:7]), max_tokens=6, sampling=Sampling(seed=3, top_p=0.8)),
    ]
    found = []
    for runner in (GpuRunner, LocalRunner):
        kernel, kv = Kernel(WallClock()), KVCache(64, 4)
        folder = checkpoint("llama", num_hidden_layers=1)
        plan = Plan(model=str(folder), use=(PPD(prompts=str(tmp_path / FILE)),))
        engine = make_engine(
            plan,
            kernel,
            kv,
            runner(kernel, model, kv),
            200,
            model.spec.vocab_size,
            put_probes=model.set_probes,
            predict=lambda step: 1.0,
        )
        found.append([(seq.tokens, seq.drafted, seq.accepted) for seq in run_load(engine, [0.0] * 2, load)])
        assert all(drafted for _, drafted, _ in found[-1])
    assert found[0] == found[1]


def test_tokens_are_fed_where_the_device_has_them(checkpoint: Make) -> None:
    """A step is told before the one before has ended; where the host chooses, it waits for that."""
    model = models.load(str(checkpoint("llama", num_hidden_layers=1)))
    load = [
        Request(prompt=tuple(TEXT[:5]), max_tokens=6, sampling=Sampling(temperature=0.0)),
        Request(prompt=tuple(TEXT[5:9]), max_tokens=6, sampling=Sampling(temperature=1.2, seed=5)),
        Request(prompt=tuple(TEXT[4:7]), max_tokens=5, sampling=Sampling(seed=3, repetition_penalty=1.5)),
        Request(prompt=tuple(TEXT[4:8]), max_tokens=4, sampling=Sampling(seed=4), prompt_logprobs=1),
        Request(prompt=tuple(TEXT[3:8]), max_tokens=6, sampling=Sampling(seed=6), constraint=PAIRS),
    ]
    size = model.spec.vocab_size
    constrain = grammars(model.tokenizer, size).matcher
    texts = []
    for ahead in (False, True):
        kernel, kv = Kernel(WallClock()), KVCache(64, 4)
        runner = GpuRunner(kernel, model, kv, ahead=ahead)
        plan = Plan(use=(Sarathi(chunk=6),))
        engine = make_engine(plan, kernel, kv, runner, 200, size, constrain=constrain)
        texts.append([seq.tokens for seq in run_load(engine, [0.0] * len(load), load)])
        assert engine.runner.depth == 1 + ahead
    assert texts[0] == texts[1]


def test_a_gpu_gets_the_kernels_for_models_they_know(checkpoint: Make) -> None:
    llama, mixtral = (models.load(str(checkpoint(family))) for family in ("llama", "mixtral"))
    assert runner_for("cuda:0", llama) is GpuRunner
    assert runner_for("cuda:0", mixtral) is LocalRunner
    assert runner_for("cpu", llama) is LocalRunner


def test_what_warms_up_a_step_has_one_sequence_per_tile_and_fits_a_small_cache() -> None:
    for tile in TILES:
        rows = _first_rows(1, tile.rows(4), 16)
        check_blocks(rows, 2, 16)
        assert [part[0] for part in plan_tasks(rows, 2, 4, None).parts] == [tile]
    decodes = _first_rows(8, 1, 16)
    check_blocks(decodes, 1, 16)
    assert len(decodes.scored) == 8


def test_padding_to_a_graphs_size_changes_no_logits_and_writes_nothing(checkpoint: Make) -> None:
    """What a captured graph runs, launched directly: contexts grow under buffers that stay where they are."""
    model = models.load(str(checkpoint("llama", num_hidden_layers=1)))
    step = GpuStep(model)
    padded, right = model.new_kv(16, 4), model.new_kv(16, 4)
    batches = []
    for count in (1, 2):
        rows = _first_rows(3, count, 4)
        with torch.inference_mode():
            batches.append(step._place(rows, 8, 8))
            got = step._run(batches[-1], padded)
        assert got.shape == (8, model.spec.vocab_size)
        torch.testing.assert_close(got[:3], model.forward(rows, right), atol=1e-4, rtol=0)
        torch.testing.assert_close(padded.keys_LTGD, right.keys_LTGD, atol=1e-5, rtol=0)
        torch.testing.assert_close(padded.values_LTGD, right.values_LTGD, atol=1e-5, rtol=0)
    first, second = (batch.plans[None] for batch in batches)
    assert [t.data_ptr() for t in first.parts[0][1:]] == [t.data_ptr() for t in second.parts[0][1:]]
    assert first.sums.data_ptr() == second.sums.data_ptr()


def test_a_buffer_stays_until_it_has_to_grow() -> None:
    mirror = Mirror("cpu")
    small = mirror.put("a", np.arange(5, dtype=np.int32))
    assert small[:5].tolist() == [0, 1, 2, 3, 4]
    same = mirror.put("a", np.arange(60, dtype=np.int32))
    assert (same.data_ptr(), mirror.version) == (small.data_ptr(), 1)
    grown = mirror.put("a", np.arange(65, dtype=np.int32))
    assert (len(grown), mirror.version) == (128, 2)
    assert grown[64] == 64
