"""Superpipeline: a window of the model's layers is in memory, the others come while these compute.

Simulated: prompts and decoding of Llama-2-7B in float16 on an A10, whose host is behind PCIe 4 with 16 lanes.
Real: 184 million random parameters in bfloat16, read from this machine's disk past the system's cache; one
thread computes, so that the other core is the disk's.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from lightwork.claims import Lab, Measured, claim
from lightwork.claims._random_llama import SPEC as SMALL
from lightwork.claims._random_llama import random_llama
from lightwork.claims._streaming import (
    forget,
    opened,
    over_the_longer,
    pass_of,
    rows_that_balance,
    streaming,
    timed_s,
    unit_times,
)
from lightwork.cluster import CostModel, parse_place
from lightwork.memory.residencies.window import Window
from lightwork.models.presets import preset
from lightwork.models.work import around_work, head_work, products
from lightwork.plan.streaming import Streamed, UnitTimes, predict, search
from lightwork.runtime.effects import Meta, Move

SPEC, PLACE, DTYPE = preset("llama-2-7b"), "sim:a10", "float16"
LAYER = Meta((SPEC.attention_params + SPEC.mlp_params() // SPEC.num_layers,), DTYPE)
LEFT = 0.4
"""Share of the layers that is in memory where 60 % is saved."""
PROMPT_ROWS, DECODE_ROWS = 4096, 1


# -- simulated


def layers(num_rows: int) -> dict[str, UnitTimes]:
    """The layers of the model and what they take on the device: a prompt of so many tokens, or one token."""
    costs = CostModel(parse_place(PLACE))
    work = (
        products(SPEC, num_rows, 1, dtype=DTYPE),
        *around_work(SPEC, [(0, num_rows)], dtype=DTYPE),
    )
    compute_s = costs.seconds(work[:1]) + costs.seconds(work[1:]) / SPEC.num_layers
    move = costs.price(Move(LAYER, "host", "memory"), 0)
    ((path, nbytes),) = move.demands
    copy_s = nbytes / costs.cluster.device.memory(path[0].partition(":")[0]).read_bytes_per_s
    head_s = costs.seconds((head_work(SPEC, 1, dtype=DTYPE),))
    head = Meta((SPEC.vocab_size, SPEC.hidden_size), DTYPE).nbytes
    found = {f"layer {i}": UnitTimes(LAYER.nbytes, compute_s, copy_s) for i in range(SPEC.num_layers)}
    return found | {"head": UnitTimes(head, head_s, copy_s * head / LAYER.nbytes)}


def resident_s(units: dict[str, UnitTimes]) -> float:
    return predict(units, Window(k=len(units))).pass_s


@claim(
    "superpipeline",
    title="a prompt of 4,096 tokens, Llama-2-7B on an A10, 40 % of its layers in memory, over all of them",
    paper="up to 60 % less memory at acceptable speed; our bar 1.1",
    expect=1.1,
    within=0.0,
    bound="at most",
)
def slowdown_of_prompts(lab: Lab) -> Measured:
    units = layers(PROMPT_ROWS)
    found = search(units, int(LEFT * sum(unit.nbytes for unit in units.values())))
    return Measured(found.pass_s / resident_s(units), f"{found.policy!r}, {found.cap_bytes / 1e9:.2f} GB")


@claim(
    "superpipeline",
    title="rows from which on a window of two hides its copies, over those that compute as long as one",
    paper="- (time bends where copy = compute; our bounds 20 %)",
    expect=1.0,
    within=0.2,
)
def knee(lab: Lab) -> Measured:
    """Hidden but for 5 %: behind the head, which computes for a moment, the first layer's copy is not."""
    copy_s = next(iter(layers(1).values())).copy_s
    rows = [2**i for i in range(13)]
    fine = [r for a in rows for r in (a, a * 5 // 4, a * 3 // 2, a * 7 // 4)]
    balanced = min(fine, key=lambda r: abs(next(iter(layers(r).values())).compute_s - copy_s))
    hidden = next(r for r in fine if predict(layers(r), Window(k=2)).pass_s < 1.05 * resident_s(layers(r)))
    times = [predict(layers(hidden // 4), Window(k=k)).pass_s for k in (2, 8, 16)]
    note = f"{hidden} rows; with a quarter of them k = 2, 8, 16: "
    return Measured(hidden / balanced, note + ", ".join(f"{1e3 * t:.0f}" for t in times) + " ms")


@claim(
    "superpipeline",
    title="decoding a token, 40 % in memory: with units that stay over without",
    paper="- (ours: k - 2 of k stay, and 22 of 33 are copied)",
    expect=2 / 3,
    within=0.05,
)
def staying(lab: Lab) -> Measured:
    units = layers(DECODE_ROWS)
    k = int(LEFT * len(units))
    plain, stays = (predict(units, Window(k=k, stay=stay)) for stay in (0, k - 2))
    note = f"{1e3 * stays.pass_s:.0f} ms, resident {1e3 * resident_s(units):.0f} ms; k = {k}"
    return Measured(stays.pass_s / plain.pass_s, note)


# -- real


@claim(
    "superpipeline",
    title="a pass over the longer of its computing and its copying, two layers of 16 in memory",
    paper="max(compute, copy); our bar 1.15",
    expect=1.15,
    within=0.0,
    bound="at most",
    mode="real",
)
def pass_over_the_longer(lab: Lab) -> Measured:
    """Of as many rows as make both about as long."""
    return Measured(*over_the_longer(Window(k=2), rows_that_balance()))


CAP = 0.25
"""Share of the weights that may be in memory."""
ROWS = 128


@cache
def found() -> tuple[Streamed, float]:
    """The window that the search finds for a quarter of the memory, and what a pass takes with it."""
    units = unit_times(ROWS)
    best = search(units, int(CAP * sum(unit.nbytes for unit in units.values())))
    model = opened(best.policy)
    passing = pass_of(model, ROWS)
    passing()
    assert streaming(model).arena.nbytes == best.cap_bytes
    took_s = median(timed_s(passing) for _ in range(5))
    model.close()
    return best, took_s


@claim(
    "superpipeline",
    title="a pass in a quarter of the memory over what the search for a window predicted",
    paper="- (our bounds 15 %)",
    expect=1.0,
    within=0.15,
    mode="real",
)
def search_predicts(lab: Lab) -> Measured:
    best, took_s = found()
    return Measured(took_s / best.pass_s, f"{took_s:.3f} s of {ROWS} rows with {best.policy!r}")


@claim(
    "superpipeline",
    title="a token in a quarter of the memory: accelerate's disk offload over ours, bfloat16, read from disk",
    paper="- (our bar 1)",
    expect=1.0,
    within=0.0,
    bound="at least",
    mode="real",
)
def over_accelerate(lab: Lab) -> Measured:
    """Layers that fit stay with both. Its files are dropped from the system's cache before each token."""
    model = opened(Window(k=4, stay=2))
    ours = pass_of(model, 1)
    ours()
    ours_s = median(timed_s(ours) for _ in range(5))
    here = streaming(model).arena.nbytes
    model.close()
    with TemporaryDirectory() as folder:
        token = accelerated(Path(folder), here)
        token()
        cold = []
        for _ in range(5):
            gc.collect()
            forget([*Path(folder).glob("*"), *Path(random_llama()).glob("*.safetensors")])
            cold.append(timed_s(token))
        warm_s = median(timed_s(token) for _ in range(5))
    note = f"{median(cold):.2f} against {ours_s:.2f} s; its files in the system's cache: {warm_s:.2f} s"
    return Measured(median(cold) / ours_s, note)


def accelerated(folder: Path, cap_bytes: int) -> Callable[[], Any]:
    """A token by transformers, with what layers do not fit in cap_bytes in files of a folder."""
    import torch
    from transformers import AutoModelForCausalLM

    layer_bytes = 2 * (SMALL.attention_params + SMALL.mlp_params() // SMALL.num_layers)
    stay = max(0, cap_bytes // layer_bytes - 1)
    places: dict[str, str] = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb"), "cpu")
    places |= {f"model.layers.{i}": "cpu" if i < stay else "disk" for i in range(SMALL.num_layers)}
    places["lm_head"] = "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        random_llama(), dtype=torch.bfloat16, device_map=places, offload_folder=str(folder)
    )
    prompt = torch.tensor([[1]])

    def token() -> Any:
        with torch.inference_mode():
            return model(prompt)

    return token
