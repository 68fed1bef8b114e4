"""LoRA adapters on disk in PEFT's format: adapter_config.json and adapter_model.safetensors.

Read without torch and without PEFT. What is not plain LoRA is refused: nothing of an adapter is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from math import isfinite, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save as in_bytes

from lightwork.errors import CheckpointError
from lightwork.home import save
from lightwork.models.adapter_set import MAX_RANK, check_adapter
from lightwork.models.adapters import Adapter, Delta
from lightwork.models.parts import Module, each_module
from lightwork.models.spec import ModelSpec, read_json

__all__ = ["read_adapter", "read_adapters", "write_adapter"]

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
READ = {
    "peft_type", "task_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias",
    "target_modules", "exclude_modules", "layers_to_transform", "init_lora_weights",
}  # fmt: skip
NO_MATTER = {
    "auto_mapping", "base_model_name_or_path", "revision", "peft_version", "inference_mode", "lora_dropout",
    "fan_in_fan_out", "layers_pattern", "megatron_config", "megatron_core", "runtime_config", "eva_config",
    "qalora_group_size", "ensure_weight_tying",
}  # fmt: skip
"""Fields that change nothing of what a trained adapter computes. Others must be empty."""
KEEPS_BASE = (None, True, False, "gaussian", "eva", "orthogonal")
"""Ways to begin that do not change the model's own weights."""
MAX_PATTERN, MAX_REPEATS = 256, 4
"""Of what names modules: with more repeats, matching could take minutes."""


def read_adapters(folder: Path, spec: ModelSpec) -> list[Adapter]:
    """Every adapter in a folder of adapters, named after its own. Raises CheckpointError."""
    found = sorted(file.parent for file in folder.glob(f"*/{CONFIG}"))
    if not found:
        raise CheckpointError(
            f"there is no adapter in {folder}" if folder.is_dir() else f"there is no folder {folder}",
            expected=f"folders with {CONFIG} and {TENSORS} in it",
            fix="save them there with PEFT's save_pretrained",
        )
    return [read_adapter(each, spec) for each in found]


def read_adapter(folder: Path, spec: ModelSpec) -> Adapter:
    """The adapter in a folder, named after it, for a model of this shape. Raises CheckpointError."""
    config = read_json(folder, CONFIG)
    _check_plain(config, folder)
    try:
        chosen = {m.path: _scale(config, m) for m in each_module(spec) if _is_chosen(config, m)}
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise _refused(folder, f"garbles {error}", "what PEFT writes") from error
    tensors = _read_tensors(folder / TENSORS)
    deltas = {}
    for path, (rank, scale) in chosen.items():
        a, b = (tensors.pop(f"{PREFIX}{path}.lora_{side}.weight", None) for side in "AB")
        if a is None or b is None:
            raise CheckpointError(
                f"{folder / TENSORS} has no {path}.lora_A or lora_B",
                expected=f"both, as {CONFIG} names the module",
                fix="copy it again",
            )
        if a.ndim != 2 or len(a) != rank:
            raise CheckpointError(
                f"{path}.lora_A of {folder} has shape {a.shape}",
                expected=f"{rank} rows, the rank in {CONFIG}",
                fix="copy both files again",
            )
        deltas[path] = Delta(a=a, b=b, scale=scale)
    if tensors:
        raise CheckpointError(
            f"{folder / TENSORS} holds {len(tensors)} tensors that have no place: {min(tensors)}",
            expected=f"lora_A and lora_B of {', '.join(_leaves(spec))}, of those that {CONFIG} names",
            fix="use the model that it was made for; experts, embeddings and heads cannot be adapted",
        )
    adapter = Adapter(name=folder.name, deltas=deltas)
    check_adapter(adapter, spec)
    return adapter


def write_adapter(folder: Path, adapter: Adapter, spec: ModelSpec, base: str = "") -> None:
    """Write what PEFT and `read_adapter` read. base: the model's name or folder, which PEFT loads.

    Each file is whole at any time, the tensors first. Raises CheckpointError for an adapter that does not
    fit the model, LightworkError if a file cannot be written.
    """
    check_adapter(adapter, spec)
    rank, first = adapter.rank, next(iter(adapter.deltas.values()))
    alphas = {path: delta.scale * delta.rank for path, delta in adapter.deltas.items()}
    alpha = first.scale * first.rank
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {path: d.rank for path, d in adapter.deltas.items() if d.rank != rank},
        "alpha_pattern": {path: a for path, a in alphas.items() if a != alpha},
        "target_modules": _names(adapter, spec),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "fan_in_fan_out": spec.family == "gpt2",
    }
    tensors = {}
    for path, delta in adapter.deltas.items():
        for side, matrix in (("A", delta.a), ("B", delta.b)):
            tensors[f"{PREFIX}{path}.lora_{side}.weight"] = np.ascontiguousarray(matrix, np.float32)
    stored = in_bytes(tensors, metadata={"format": "pt"})
    save(folder / TENSORS, lambda part: part.write_bytes(stored))
    save(folder / CONFIG, lambda part: part.write_text(json.dumps(config, indent=2), encoding="utf-8"))


def _leaf(module: Module) -> str:
    """The name of a module in its layer: self_attn.q_proj."""
    return module.path.partition(f".{module.layer}.")[2]


def _leaves(spec: ModelSpec) -> list[str]:
    return [*dict.fromkeys(_leaf(module) for module in each_module(spec))]


def _names(adapter: Adapter, spec: ModelSpec) -> list[str]:
    """What PEFT calls an adapter's modules: by their names in a layer, if all layers have them."""
    of_leaf: dict[str, list[str]] = {}
    for module in each_module(spec):
        of_leaf.setdefault(_leaf(module), []).append(module.path)
    names = []
    for leaf, paths in of_leaf.items():
        there = [path for path in paths if path in adapter.deltas]
        names += [leaf] if len(there) == len(paths) else there
    return names


def _check_plain(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse what is more than A and B of matrices."""
    wanted: dict[str, tuple[object, ...]] = {
        "peft_type": ("LORA",),
        "task_type": (None, "CAUSAL_LM"),
        "bias": (None, "none"),
        "init_lora_weights": KEEPS_BASE,
    }
    for field, allowed in wanted.items():
        if config.get(field) not in allowed:
            said = " or ".join(map(repr, allowed))
            raise _refused(folder, f"says {field} {str(config.get(field))[:80]!r}", said)
    for field, value in config.items():
        if field not in READ | NO_MATTER and value:
            raise _refused(folder, f"sets {field} to {str(value)[:80]}", "plain LoRA without it")


def _scale(config: Mapping[str, Any], module: Module) -> tuple[int, float]:
    """Rank and scale of a module. Raises ValueError, TypeError."""
    rank = _of_pattern(config.get("rank_pattern"), module, config.get("r", 8))
    alpha = _of_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    if not isinstance(rank, int) or isinstance(rank, bool) or not 0 < rank <= MAX_RANK:
        raise ValueError(f"r: {str(rank)[:80]} is not 1 to {MAX_RANK}")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not isfinite(alpha):
        raise ValueError(f"lora_alpha: {str(alpha)[:80]} is no number")
    return rank, alpha / (sqrt(rank) if config.get("use_rslora") else rank)


def _of_pattern(patterns: Mapping[str, Any] | None, module: Module, otherwise: Any) -> Any:
    for pattern, value in (patterns or {}).items():
        if _matcher(rf"(.*\.)?({pattern})$")(module.path):
            return value
    return otherwise


def _is_chosen(config: Mapping[str, Any], module: Module) -> bool:
    """Whether PEFT would adapt a module. Raises ValueError, TypeError."""
    targets, layers = config.get("target_modules"), config.get("layers_to_transform")
    if not targets:
        raise ValueError("target_modules, which names none")
    if targets != "all-linear" and not _is_named(targets, module.path):
        return False
    excluded = config.get("exclude_modules")
    if excluded and _is_named(excluded, module.path):
        return False
    if layers is None or layers == [] or isinstance(targets, str):
        return True
    return module.layer in ([layers] if isinstance(layers, int) else layers)


def _is_named(names: str | list[str], path: str) -> bool:
    if isinstance(names, str):
        return _matcher(names)(path)
    return any(path == name or path.endswith(f".{name}") for name in names)


@lru_cache(1024)
def _matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a whole path matches. Raises ValueError for a pattern that could take for ever."""
    repeats = len(re.findall(r"(?<!\()[*+?{]", pattern))
    if len(pattern) > MAX_PATTERN or repeats > MAX_REPEATS or re.search(r"\)[*+{]", pattern):
        raise ValueError(f"the pattern {pattern[:80]!r}, which repeats groups, or too much")
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"the pattern {pattern[:80]!r}: {error}") from error
    return lambda path: compiled.fullmatch(path) is not None


def _refused(folder: Path, what: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{folder / CONFIG} {what}", expected=expected, fix="train or convert it as a plain LoRA adapter"
    )


def _read_tensors(file: Path) -> dict[str, NDArray[np.float32]]:
    """All tensors of a file, as float32."""
    try:
        stored = deserialize(file.read_bytes())  # type: ignore[no-untyped-call]
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} is missing or damaged: {error}",
            expected="a whole safetensors file",
            fix="save the adapter with PEFT's save_pretrained, or copy it again",
        ) from error
    return {name: _float32(name, told) for name, told in stored}


def _float32(name: str, told: Mapping[str, Any]) -> NDArray[np.float32]:
    data, shape, kind = told["data"], told["shape"], told["dtype"]
    if kind == "BF16":
        wide = np.frombuffer(data, np.uint16).astype(np.uint32) << np.uint32(16)
        return wide.view(np.float32).reshape(shape)
    if kind not in ("F32", "F16"):
        raise CheckpointError(f"{name} is of type {kind}", expected="F32, F16 or BF16")
    numbers = np.frombuffer(data, np.float32 if kind == "F32" else np.float16)
    return numbers.astype(np.float32).reshape(shape)
