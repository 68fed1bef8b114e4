"""Models of big and small MLPs are trained, written and read; routers are fitted; drafts lose nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightwork import models
from lightwork.agents.worlds.lessons import WORDS, Lessons
from lightwork.agents.worlds.plan_world import SYLLABLES, PlanWorld
from lightwork.decode.proposers import Target
from lightwork.decode.proposers.draft_model import BLOCK_SIZE, DraftModel, DraftRunner
from lightwork.decode.sampling import Sampling
from lightwork.errors import CheckpointError, RangeError
from lightwork.memory.kv import KVCache
from lightwork.models.duo import BIG, SMALL, Duo, given
from lightwork.models.duo_oracle import Prefixes, every_pattern
from lightwork.models.model import Model
from lightwork.models.spec import ModelSpec, Rope
from lightwork.models.tokenizer import Tokenizer
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.serve.engine import Engine, Limits
from lightwork.serve.local_runner import LocalRunner
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import Request
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulate import run_load
from lightwork.train.duo import (
    SMALL_FOLDER,
    initial_duo,
    predict_routed,
    read_duo,
    save_duo,
    train_duo,
)
from lightwork.train.duo_router import Lesson, fit_gates, tabulate
from lightwork.train.pretrain import Batch, Settings, predict
from lightwork.train.vocabulary import build_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENIZER = build_tokenizer(WORDS, SYLLABLES)
LAYERS = 3
SPEC = ModelSpec(
    family="llama",
    vocab_size=TOKENIZER.get_vocab_size(),
    hidden_size=32,
    num_layers=LAYERS,
    num_heads=2,
    num_kv_heads=2,
    head_size=16,
    ffn_size=48,
    max_len=256,
    rope=Rope(theta=500_000.0),
    qkv_bias=True,
    out_bias=True,
    tied=True,
)


def lessons(seed: int = 0) -> Iterator[Batch]:
    world = PlanWorld()
    return iter(
        Lessons(
            tokenizer=TOKENIZER,
            rng=Random(seed),
            world=world,
            batch_size=2,
            seq_len=128,
            max_len=256,
            gap_share=0.0,
        )
    )


def trained(steps: int, seed: int = 0) -> tuple[Duo, list[float]]:
    duo = initial_duo(SPEC, 16, 0)
    settings = Settings(steps=steps, learning_rate=5e-3, warmup_steps=5)
    return duo, [p.loss for p in train_duo(duo, lessons(), settings, seed=seed)]


@pytest.fixture(scope="module")
def duo() -> Duo:
    made, _ = trained(30)
    for tensor in made.tensors():
        tensor.requires_grad_(False)
    return made


@pytest.fixture(scope="module")
def folder(duo: Duo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("duo")
    save_duo(place, duo, TOKENIZER)
    return place


def test_random_routing_lowers_the_loss_of_every_path() -> None:
    fresh, (made, losses) = initial_duo(SPEC, 16, 0), trained(30)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    batch = next(lessons(1))
    for choice in (SMALL, BIG):
        choices = given(torch.full((2 * 127, LAYERS), choice))
        before, after = (
            torch.nn.functional.cross_entropy(*predict_routed(d, batch, choices)) for d in (fresh, made)
        )
        assert after < 0.8 * before


def test_one_seed_gives_one_set_of_weights_and_another_routes_otherwise() -> None:
    (first, _), (again, _), (other, _) = trained(3), trained(3), trained(3, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first.tensors(), again.tensors(), strict=True))
    assert not torch.equal(first.big.layers[0].up, other.big.layers[0].up)


def test_both_widths_learn_together() -> None:
    duo, _ = trained(1)
    assert all(layer.up.grad is not None for layer in (*duo.big.layers, *duo.small.layers))


@pytest.mark.parametrize("width", [0, 48])
def test_a_small_mlp_is_narrower(width: int) -> None:
    with pytest.raises(RangeError, match=f"small MLPs are {width} wide"):
        initial_duo(SPEC, width, 0)


def test_what_was_written_is_read(duo: Duo, folder: Path) -> None:
    again = read_duo(folder)
    assert (again.spec.ffn_size, again.small_spec.ffn_size) == (48, 16)
    assert all(torch.equal(a, b) for a, b in zip(duo.tensors(), again.tensors(), strict=True))


def test_the_folder_is_a_checkpoint_of_the_big_path(duo: Duo, folder: Path) -> None:
    batch = next(lessons(2))
    served = models.load(str(folder))
    big = given(torch.full((2 * 127, LAYERS), BIG))
    expected, _ = predict_routed(duo, batch, big)
    assert torch.equal(predict(served.weights, served.spec, batch)[0], expected)


def test_small_mlps_of_another_model_are_refused(duo: Duo, tmp_path: Path) -> None:
    save_duo(tmp_path, duo, TOKENIZER)
    config = tmp_path / SMALL_FOLDER / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 2}))
    with pytest.raises(CheckpointError, match="is of another model"):
        read_duo(tmp_path)


def test_a_missing_small_mlp_is_named(duo: Duo, tmp_path: Path) -> None:
    save_duo(tmp_path, duo, TOKENIZER)
    file = tmp_path / SMALL_FOLDER / "model.safetensors"
    kept = load_file(file)
    kept.pop("model.layers.1.mlp.down_proj.weight")
    save_file(kept, file)
    with pytest.raises(CheckpointError, match=r"has no tensor model\.layers\.1\.mlp\.down_proj\.weight"):
        read_duo(tmp_path)


def test_what_a_big_mlp_saves_is_the_mean_over_all_completions(duo: Duo) -> None:
    tokens = next(lessons(3)).tokens_BT[0]
    paths = torch.tensor([0, 5, 6])
    losses, lesson = tabulate(Prefixes(duo, tokens), 60, LAYERS, paths)
    patterns = every_pattern(LAYERS)
    for p, path in enumerate(paths):
        for layer in range(LAYERS):
            begins = (patterns[:, :layer] == patterns[path, :layer]).all(1)
            behind = (patterns[:, layer + 1 :] == BIG).sum(1)
            for left in range(LAYERS + 1):
                small = losses[begins & (patterns[:, layer] == SMALL) & (behind == left)]
                big = losses[begins & (patterns[:, layer] == BIG) & (behind == left - 1)]
                found = lesson.saved[p, layer, left]
                if len(small) and len(big):
                    torch.testing.assert_close(found, small.mean() - big.mean())
                else:
                    assert found.isnan()
    assert lesson.states.shape == (3, LAYERS, 32)


def test_gates_learn_what_hidden_states_foretell() -> None:
    rng = torch.Generator().manual_seed(0)
    truth = torch.randn(32, generator=rng)
    made = []
    for _ in range(200):
        states = torch.randn(2, LAYERS, 32, generator=rng)
        saved = torch.full((2, LAYERS, LAYERS + 1), float("nan"))
        for layer in range(LAYERS - 1):
            saved[:, layer, 1 : LAYERS - layer] = (states[:, layer] @ truth)[:, None] - 0.5
        made.append(Lesson(states, saved))
    fit = fit_gates(made)
    assert min(fit.shares) > 0.9
    choices = fit.gates.choose(1)(0, torch.stack([truth, -truth]))
    assert choices.tolist() == [BIG, SMALL]


def answers(duo: Duo, folder: Path, drafts: bool, how: Sampling) -> list[Seq]:
    kernel, kv, model = Kernel(WallClock()), KVCache(64, BLOCK_SIZE), models.load(str(folder))
    limits = Limits(max_len=256, max_seqs=4, max_waiting=4)
    small = Model(duo.small_spec, duo.small, Tokenizer(folder), {}, "cpu")
    batch = next(lessons(4)).tokens_BT
    asked = [Request(prompt=tuple(t[:40].tolist()), max_tokens=24, sampling=how) for t in batch]
    with ThreadPoolExecutor(1) as beside:
        target = Target(model="", on="cpu", max_seqs=4, max_len=256, beside=beside)
        path = DraftRunner(DraftModel(k=3), small, "float32", BLOCK_SIZE, target)
        engine = Engine(
            kernel,
            LocalRunner(kernel, model, kv),
            kv,
            Sarathi(),
            limits=limits,
            proposer=path if drafts else None,
            predict=lambda step: 1.0,
            vocab_size=SPEC.vocab_size,
        )
        return run_load(engine, [0.0] * len(asked), asked)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_of_the_small_path_lose_nothing(duo: Duo, folder: Path, temperature: float) -> None:
    how = Sampling(temperature=temperature, seed=7)
    plain, drafted = (answers(duo, folder, drafts, how) for drafts in (False, True))
    assert [seq.tokens for seq in drafted] == [seq.tokens for seq in plain]
    assert 0 < sum(seq.accepted for seq in drafted) <= sum(seq.drafted for seq in drafted)
