"""Adapters: what PEFT writes and reads, and one step of rows of several of them, in every forward."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

pytest.importorskip("numba")

from steps import Part, Steps

from lightwork import models
from lightwork.errors import CheckpointError, InvariantError
from lightwork.kernels.rows import Rows
from lightwork.models.adapter_set import AdapterSet
from lightwork.models.adapters import Adapter, Delta
from lightwork.models.adapters.lora import Lora
from lightwork.models.parts import each_module
from lightwork.models.peft import CONFIG, READ, TENSORS, read_adapter, read_adapters, write_adapter
from lightwork.models.precisions.quant import Quant
from lightwork.models.precisions.stored import Stored
from lightwork.models.spec import ModelSpec
from lightwork.testing import random_adapter

Make = Callable[..., Path]
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gpt2", "mixtral", "qwen3_moe")
TREE = (-1, -1, 0, 2, 1)
PARTS = [Part(0, 0, 90), Part(1, 70, 1, TREE), Part(2, 33, 9), Part(3, 0, 1), Part(4, 127, 2, (-1, 0, 1))]
ASKED = ("one@1", "", "two@1", "one@1", "some@1")
"""What each part is computed with."""


def adapters_of(spec: ModelSpec) -> list[Adapter]:
    """Of ranks that are no whole vectors, one of them of a few matrices only."""
    kind = "c_attn" if spec.family == "gpt2" else "k_proj"
    return [
        random_adapter(spec, "one", 1, rank=4),
        random_adapter(spec, "two", 2, rank=19, scale=0.1),
        random_adapter(spec, "some", 3, rank=2, only=kind),
    ]


def with_adapters(model: Any) -> Any:
    for adapter in adapters_of(model.spec):
        model.adapters.put(adapter)
    return model


class Asking(Steps):
    """Steps of which each sequence has an adapter, always the same."""

    def rows(self, parts: Sequence[Part]) -> Rows:
        # Named: a class with slots has no plain super() once it is made anew.
        return replace(Steps.rows(self, parts), models=[ASKED[part.seq] for part in parts])


def merged(model: Any, adapter: Adapter | None) -> Any:
    """Add an adapter to the weights of a torch model."""
    for module in each_module(model.spec):
        delta = adapter.deltas.get(module.path) if adapter is not None else None
        if delta is not None:
            weight = getattr(model.weights.layers[module.layer], module.product)
            added = torch.from_numpy(np.float32(delta.scale) * (delta.b @ delta.a))
            weight[module.first : module.first + module.outputs] += added
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_several_adapters_are_those_of_each_merged_into_the_weights(
    checkpoint: Make, family: str
) -> None:
    folder = str(checkpoint(family))
    torch_model = with_adapters(models.load(folder))
    compiled = with_adapters(models.load_compiled(folder, precision=Stored()))
    got = [Asking(model).after(PARTS) for model in (torch_model, compiled)]
    by_name = {f"{adapter.name}@1": adapter for adapter in adapters_of(torch_model.spec)}
    plain = Steps(models.load(folder)).after(PARTS)
    for i, part in enumerate(PARTS):
        expected = Steps(merged(models.load(folder), by_name.get(ASKED[i]))).after([part])[0]
        for rows in got:
            np.testing.assert_allclose(rows[i], expected, atol=2e-4, rtol=0)
        assert (abs(expected - plain[i]).max() > 0.1) == bool(ASKED[i])
    compiled.close()


PRECISIONS = {
    "float32": (Stored(), "float32"),
    "bfloat16": (Stored(), "bfloat16"),
    "products of bfloat16": (Quant(bits=16), "bfloat16"),
    "8 bits": (Quant(bits=8, group=32), "float32"),
    "4 bits, float inputs": (Quant(bits=4, activations=32, group=32), "float32"),
}


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_row_has_the_bits_that_it_has_alone(checkpoint: Make, family: str, precision: str) -> None:
    """With an adapter or without: whoever shares the step, however it is cut, on one thread or three."""
    kept, dtype = PRECISIONS[precision]
    folder = str(checkpoint(family, dtype=dtype))
    model = models.load_compiled(folder, precision=kept)
    plain = Steps(model).after(PARTS)
    with_adapters(model)
    model.set_threads(3)
    together = Asking(model).after(PARTS)
    model.set_threads(1)
    for i, part in enumerate(PARTS):
        np.testing.assert_array_equal(Asking(model).after([part])[0], together[i])
        np.testing.assert_array_equal(Steps(model).after([part])[0], plain[i])
        if not ASKED[i]:
            np.testing.assert_array_equal(together[i], plain[i])
    steps = Asking(model)
    in_pieces = [steps.run([Part(0, at, 9)])[0] for at in range(0, 90, 9)]
    np.testing.assert_array_equal(np.concatenate(in_pieces), together[0])
    model.close()


def test_a_step_of_more_rows_than_fit_is_computed_in_parts(checkpoint: Make) -> None:
    model = with_adapters(models.load_compiled(str(checkpoint("llama")), precision=Stored()))
    parts = [Part(0, 0, 250), Part(1, 0, 250), Part(2, 0, 250)]
    together = Asking(model).run(parts)
    for part, rows in zip(parts, together, strict=True):
        np.testing.assert_array_equal(Asking(model).run([part])[0], rows)
    model.close()


def test_the_gpu_step_leaves_rows_with_adapters_to_the_torch_forward(checkpoint: Make) -> None:
    pytest.importorskip("triton")
    from lightwork.models.gpu_step import GpuStep

    model = with_adapters(models.load(str(checkpoint("llama"))))
    rows = replace(Steps(model).rows([Part(0, 0, 20)]), models=["one@1"])
    step = GpuStep(model)
    got = step.forward(rows, model.new_kv(160, 64)).numpy()
    np.testing.assert_array_equal(got, model.logits(rows, model.new_kv(160, 64)))


# -- versions


def test_a_name_is_its_newest_version_and_older_ones_go_when_none_uses_them(checkpoint: Make) -> None:
    spec = models.read_shape(str(checkpoint("llama")))
    held: AdapterSet[str] = AdapterSet(
        spec, lambda adapter: f"placed {adapter.deltas.keys() and adapter.rank}"
    )
    in_use: set[str] = set()
    assert [held.put(random_adapter(spec, "a", rank=r), in_use) for r in (1, 2)] == ["a@1", "a@2"]
    assert held.put(random_adapter(spec, "b"), in_use) == "b@1"
    assert held.variants == {"a": "a@2", "b": "b@1"}
    in_use.add("a@2")
    held.put(random_adapter(spec, "a", rank=3), in_use)
    assert {*held} == {"a@2", "a@3", "b@1"}  # the first has gone, the last may still be asked for
    for rank in range(4, 20):
        held.put(random_adapter(spec, "a", rank=rank), in_use)
    assert {*held} == {"a@2", "a@18", "a@19", "b@1"}
    assert held.of(["a@2", "", "a@19"]) == ["placed 2", None, "placed 19"]
    with pytest.raises(InvariantError, match="a@1"):
        held.of(["a@1"])


def test_what_does_not_fit_changes_nothing(checkpoint: Make) -> None:
    spec = models.read_shape(str(checkpoint("llama")))
    held: AdapterSet[int] = AdapterSet(spec, lambda adapter: adapter.rank)
    good = random_adapter(spec, "a")
    held.put(good)
    path, delta = next(iter(good.deltas.items()))
    bad = {
        "shapes": {path: replace(delta, a=delta.a[:, 1:])},
        "finite": {path: replace(delta, b=np.full_like(delta.b, np.nan))},
        "rank 513": {path: Delta(a=np.zeros((513, 32), "f"), b=np.zeros((32, 513), "f"), scale=1.0)},
        "rank 0": {path: Delta(a=np.zeros((0, 32), "f"), b=np.zeros((32, 0), "f"), scale=1.0)},
        "lm_head": {"lm_head": delta},
        "0 matrices": {},
    }
    for wrong, deltas in bad.items():
        with pytest.raises(CheckpointError, match=wrong):
            held.put(Adapter(name="a", deltas=deltas))
    assert held.variants == {"a": "a@1"}


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "torch"])
def test_what_is_written_to_an_adapter_later_is_not_served(checkpoint: Make, compiled: bool) -> None:
    folder = str(checkpoint("llama"))
    model: Any = models.load_compiled(folder, precision=Stored()) if compiled else models.load(folder)
    adapter = random_adapter(model.spec, "one")
    model.adapters.put(adapter)
    before = Asking(model).run([PARTS[0]])[0].copy()
    for delta in adapter.deltas.values():
        delta.a[:] = delta.b[:] = 0
    np.testing.assert_array_equal(Asking(model).run([PARTS[0]])[0], before)
    model.close()


# -- PEFT's format


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_is_read_again(checkpoint: Make, tmp_path: Path, family: str) -> None:
    spec = models.read_shape(str(checkpoint(family)))
    for adapter in adapters_of(spec):
        write_adapter(tmp_path / adapter.name, adapter, spec)
    for adapter, again in zip(
        sorted(adapters_of(spec), key=lambda a: a.name), Lora(folder=str(tmp_path)).read(spec), strict=True
    ):
        assert again.name == adapter.name
        assert again.deltas.keys() == adapter.deltas.keys()
        for path, delta in adapter.deltas.items():
            np.testing.assert_array_equal(again.deltas[path].a, delta.a)
            np.testing.assert_array_equal(again.deltas[path].b, delta.b)
            assert again.deltas[path].scale == pytest.approx(delta.scale, rel=1e-12)


def peft_model(folder: Path) -> Any:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def peft_logits(model: Any, tokens: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


TARGETS: dict[str, dict[str, Any]] = {
    "all linear": {"target_modules": "all-linear", "r": 4, "lora_alpha": 8},
    "attention": {"target_modules": ["q_proj", "v_proj"], "r": 8, "lora_alpha": 4},
    "a pattern": {"target_modules": r".*\.(k_proj|down_proj)", "r": 3, "lora_alpha": 5},
    "stabilised": {"target_modules": ["o_proj", "up_proj"], "r": 9, "lora_alpha": 6, "use_rslora": True},
    "ranks": {
        "target_modules": ["q_proj", "gate_proj"],
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"layers.1.self_attn.q_proj": 7},
        "alpha_pattern": {"gate_proj": 3, r"^model.layers.\d.self_attn.q_proj": 2},
    },
    "layers": {
        "target_modules": ["q_proj", "v_proj"],
        "layers_to_transform": [0, 2],
        "exclude_modules": ["v_proj"],
    },
}
PEER_CASES = [("llama", name) for name in TARGETS] + [(f, "all linear") for f in ("qwen2", "qwen3", "gpt2")]


@pytest.mark.peer
@pytest.mark.parametrize(("family", "targets"), PEER_CASES)
def test_logits_are_those_of_peft(checkpoint: Make, tmp_path: Path, family: str, targets: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = pytest.importorskip("peft")
        folder, text = checkpoint(family), np.random.default_rng(0).integers(0, 256, 60).tolist()
        model = peft.get_peft_model(
            peft_model(folder), peft.LoraConfig(task_type="CAUSAL_LM", **TARGETS[targets])
        )
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        model.eval().save_pretrained(tmp_path / "a")
        expected = peft_logits(model, text)
    for served in (models.load(str(folder)), models.load_compiled(str(folder), precision=Stored())):
        served.adapters.put(read_adapter(tmp_path / "a", served.spec))
        rows = replace(Rows.of_text(np.array(text), 64), models=["a@1"])
        np.testing.assert_allclose(served.logits(rows, served.new_kv(1, 64)), expected, atol=2e-4, rtol=0)
        served.close()


@pytest.mark.peer
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_peft_reads_what_is_written(checkpoint: Make, tmp_path: Path, family: str) -> None:
    folder, text = checkpoint(family), np.random.default_rng(0).integers(0, 256, 60).tolist()
    served = with_adapters(models.load(str(folder)))
    for adapter in adapters_of(served.spec):
        mixed = dict(adapter.deltas)
        path, delta = next(iter(mixed.items()))
        mixed[path] = Delta(a=delta.a[:1], b=delta.b[:, :1], scale=3 * delta.scale)
        adapter = Adapter(name=adapter.name, deltas=mixed)
        version = served.adapters.put(adapter)
        write_adapter(tmp_path / adapter.name, adapter, served.spec, str(folder))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peft = pytest.importorskip("peft")
            expected = peft_logits(
                peft.PeftModel.from_pretrained(peft_model(folder), tmp_path / adapter.name), text
            )
        rows = replace(Rows.of_text(np.array(text), 64), models=[version])
        np.testing.assert_allclose(served.logits(rows, served.new_kv(1, 64)), expected, atol=2e-4, rtol=0)


# -- folders that are not what they should be


@pytest.fixture(scope="module")
def saved(checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelSpec]:
    spec = models.read_shape(str(checkpoint("llama")))
    folder = tmp_path_factory.mktemp("adapters") / "a"
    write_adapter(folder, random_adapter(spec, "a"), spec)
    return folder, spec


def changed(saved: tuple[Path, ModelSpec], to: Path, **fields: Any) -> Path:
    to.mkdir(exist_ok=True)
    config = json.loads((saved[0] / CONFIG).read_text()) | fields
    (to / CONFIG).write_text(json.dumps(config))
    (to / TENSORS).write_bytes((saved[0] / TENSORS).read_bytes())
    return to


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"task_type": "SEQ_CLS"}, "SEQ_CLS"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"alora_invocation_tokens": [1]}, "alora"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"of_tomorrow": 1}, "of_tomorrow"),
        ({"r": 10**9}, "1000000000"),
        ({"r": 5}, "5 rows"),
        ({"r": True}, "True"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"lora_alpha": "8"}, "lora_alpha"),
        ({"lora_alpha": 10**400}, "garbles"),
        ({"target_modules": []}, "target_modules"),
        ({"target_modules": 3}, "garbles"),
        ({"target_modules": ["q_proj"]}, "no place"),
        ({"target_modules": "("}, "pattern"),
        ({"target_modules": "(.*)*x"}, "pattern"),
        ({"target_modules": ".*" * 20 + "x"}, "pattern"),
        ({"rank_pattern": {"(a+)+": 3}}, "pattern"),
        ({"rank_pattern": [1]}, "garbles"),
        ({"layers_to_transform": [0]}, "no place"),
    ],
    ids=repr,
)
def test_what_is_not_plain_lora_is_refused(
    saved: tuple[Path, ModelSpec], tmp_path: Path, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(CheckpointError, match=said) as raised:
        read_adapter(changed(saved, tmp_path / "a", **fields), saved[1])
    assert raised.value.expected


def test_tensors_that_lack_or_do_not_fit_are_refused(saved: tuple[Path, ModelSpec], tmp_path: Path) -> None:
    tensors = load_file(saved[0] / TENSORS)
    first = min(tensors)
    cases = {
        "has no": {name: x for name, x in tensors.items() if name != first},
        "no place": {**tensors, "base_model.model.lm_head.lora_A.weight": np.zeros((4, 32), "f")},
        "shape": {**tensors, first: np.zeros((4, 31), "f")},
        "has shape": {**tensors, first: np.zeros(4, "f")},
        "finite": {**tensors, first: np.full((4, 48), np.inf, "f")},
        "type": {**tensors, first: np.zeros((4, 48), np.int32)},
    }
    assert tensors[first].shape == (4, 48)
    for said, bad in cases.items():
        folder = changed(saved, tmp_path / "a")
        save_file(bad, folder / TENSORS)
        with pytest.raises(CheckpointError, match=said):
            read_adapter(folder, saved[1])


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_numbers_of_16_bits_are_widened(
    saved: tuple[Path, ModelSpec], tmp_path: Path, kind: torch.dtype
) -> None:
    from safetensors.torch import load_file, save_file

    folder = changed(saved, tmp_path / "a")
    tensors = {name: x.to(kind) for name, x in load_file(saved[0] / TENSORS).items()}
    save_file(tensors, folder / TENSORS)
    adapter = read_adapter(folder, saved[1])
    for path, delta in adapter.deltas.items():
        stored = tensors[f"base_model.model.{path}.lora_A.weight"]
        np.testing.assert_array_equal(delta.a, stored.float().numpy())


def test_a_folder_without_adapters_says_what_it_should_hold(tmp_path: Path, checkpoint: Make) -> None:
    spec = models.read_shape(str(checkpoint("llama")))
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match="there is no") as raised:
            read_adapters(folder, spec)
        assert CONFIG in raised.value.expected


def test_a_config_that_nests_without_end_is_refused(saved: tuple[Path, ModelSpec], tmp_path: Path) -> None:
    folder = changed(saved, tmp_path / "a")
    (folder / CONFIG).write_text('{"r": ' + "[" * 200_000)
    with pytest.raises(CheckpointError, match="not JSON"):
        read_adapter(folder, saved[1])


def test_adapters_of_experts_are_refused(checkpoint: Make, tmp_path: Path) -> None:
    spec = models.read_shape(str(checkpoint("qwen3_moe")))
    adapter = random_adapter(spec, "a", only="q_proj")
    write_adapter(tmp_path / "a", adapter, spec)
    tensors = load_file(tmp_path / "a" / TENSORS)
    tensors["base_model.model.model.layers.0.mlp.experts.0.up_proj.lora_A.weight"] = np.zeros((4, 32), "f")
    save_file(tensors, tmp_path / "a" / TENSORS)
    with pytest.raises(CheckpointError, match="no place") as raised:
        read_adapter(tmp_path / "a", spec)
    assert "experts" in raised.value.fix


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from([*sorted(READ), "modules_to_save", "use_dora"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.dictionaries(FIELDS, JSON, min_size=1, max_size=3), cut=st.integers(0, 400) | st.none())
def test_no_folder_does_worse_than_being_refused(
    saved: tuple[Path, ModelSpec], tmp_path: Path, fields: dict[str, Any], cut: int | None
) -> None:
    folder = changed(saved, tmp_path / "a", **fields)
    if cut is not None:
        data = bytearray((saved[0] / TENSORS).read_bytes())
        (folder / TENSORS).write_bytes(data[:cut] if cut % 2 else data[:cut] + b"\xff" + data[cut + 1 :])
    with suppress(CheckpointError):
        assert read_adapter(folder, saved[1]).rank == 4
