"""Experts on several processes: the logits of one process, bit for bit; all-to-alls and bytes counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lightwork import models
from lightwork.claims._expert_ranks import Logits, row_by_row
from lightwork.claims._routes import iid_trace
from lightwork.cluster import CostModel, parse_place
from lightwork.errors import CapacityError, LightworkError, RangeError
from lightwork.models.presets import preset
from lightwork.models.routing import Recorder
from lightwork.parallel.expert_dispatch import ExpertDispatch, Traffic
from lightwork.parallel.expert_placement import ExpertPlacement
from lightwork.parallel.expert_shard import BLOCK, generate
from lightwork.parallel.processes import run_processes
from lightwork.parallel.traced_shard import Decoding, simulate
from lightwork.runtime.trace import Trace

pytestmark = [pytest.mark.multiproc, pytest.mark.usefixtures("one_thread")]

PROMPTS = ((5, 9, 200, 31), (7,), tuple(range(40, 60)), (250, 250, 3), (11, 12))
STEPS = 6


def alone(folder: Path, recorder: Recorder) -> Logits:
    """In one process, by the model that serves."""
    model = models.load(str(folder))
    model.routed = recorder
    return row_by_row(model, PROMPTS, STEPS)


@pytest.fixture(scope="module")
def folders(checkpoint: Callable[..., Path]) -> dict[int, Path]:
    """By experts per token. The first one's gates are not made to add up to one, or they would be one."""
    layers = {"num_experts": 8, "num_hidden_layers": 4}
    return {
        1: checkpoint("qwen3_moe", num_experts_per_tok=1, norm_topk_prob=False, **layers),
        3: checkpoint("qwen3_moe", num_experts_per_tok=3, mlp_only_layers=[1], **layers),
    }


def random_placement(num_layers: int, n: int, seed: int = 0) -> ExpertPlacement:
    rng = np.random.default_rng(seed)
    dealt = np.repeat(np.arange(n), 8 // n)
    return ExpertPlacement(rank_LE=np.stack([rng.permutation(dealt) for _ in range(num_layers)]), num_ranks=n)


def together(
    folder: Path, n: int, *, return_home: bool, steps: int = STEPS, tile: int = 1
) -> tuple[Logits, Traffic]:
    trace = Trace("real")
    num_layers = len(models.read_shape(str(folder)).moe)
    dispatch = ExpertDispatch(placement=random_placement(num_layers, n), return_home=return_home)
    parts = run_processes(generate, n, str(folder), dispatch, PROMPTS, steps, tile, trace=trace)
    logits = {key: value for part in parts for key, value in part.items()}
    assert len(logits) == sum(map(len, parts)), "a token ended on two ranks"
    return logits, Traffic.of(trace.spans, n)


def assert_equal(a: Logits, b: Logits) -> None:
    assert a.keys() == b.keys()
    for key, logits_V in a.items():
        assert torch.equal(logits_V, b[key]), key


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(("n", "return_home"), [(2, False), (4, False), (2, True)])
def test_logits_are_those_of_one_process_bit_for_bit(
    folders: dict[int, Path], k: int, n: int, return_home: bool
) -> None:
    logits, traffic = together(folders[k], n, return_home=return_home)
    assert_equal(alone(folders[k], Recorder()), logits)
    layers = 4 if k == 1 else 3
    each = 2 if return_home or k > 1 else 1  # of prompts: 2
    assert traffic.all_to_alls == layers * (2 + STEPS * each)
    assert traffic.all_gathers == (0 if return_home else 1 + STEPS)


def test_rows_computed_in_tiles_have_the_same_bits_on_any_number_of_ranks(folders: dict[int, Path]) -> None:
    one, _ = together(folders[1], 1, return_home=True, tile=8)
    two, _ = together(folders[1], 2, return_home=False, tile=8)
    assert_equal(one, two)
    for key, logits_V in alone(folders[1], Recorder()).items():
        torch.testing.assert_close(one[key], logits_V, rtol=1e-4, atol=1e-4)


def rows_sent(chosen_NL: np.ndarray, placement: ExpertPlacement, n: int, *, return_home: bool) -> int:
    """Rows sent in all steps behind the prompts, by hand: where each token is, and where its expert."""
    sent = first = 0
    for seq, prompt in enumerate(PROMPTS):
        here = seq % n
        for token in range(first + len(prompt), first + len(prompt) + STEPS):
            for layer, e in enumerate(chosen_NL[token]):
                there = placement.rank_LE[layer, e]
                sent += (there != here) * (1 + return_home)
                here = here if return_home else there
        first += len(prompt) + STEPS
    return sent


def test_bytes_are_those_of_rows_that_cross_and_of_new_keys_and_values(folders: dict[int, Path]) -> None:
    """A row is its hidden states, its number and its expert's. What stays is not sent."""
    folder, n = folders[1], 4
    spec, recorder = models.read_shape(str(folder)), Recorder()
    alone(folder, recorder)
    first_NL, placement = recorder.trace().first_NL, random_placement(4, n)
    row_bytes, num_rows = 4 * spec.hidden_size + 8, len(PROMPTS) * STEPS * 4
    moved = {}
    for return_home in (True, False):
        _, whole = together(folder, n, return_home=return_home)
        _, prompts = together(folder, n, return_home=return_home, steps=0)
        rows = rows_sent(first_NL, placement, n, return_home=return_home)
        moved[return_home] = whole.all_to_all_bytes - prompts.all_to_all_bytes
        assert moved[return_home] == rows * row_bytes
        kept = 2 * spec.num_kv_heads * spec.head_size * 4 + 8
        gathered = whole.all_gather_bytes - prompts.all_gather_bytes
        assert gathered == (0 if return_home else (n - 1) * num_rows * kept)
    crossing_share = moved[False] / (num_rows * row_bytes)
    assert moved[False] <= moved[True] * crossing_share


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("return_home", [True, False])
def test_the_same_routes_move_the_same_bytes_in_simulation(
    folders: dict[int, Path], k: int, return_home: bool
) -> None:
    recorder, n, num_seqs = Recorder(), 4, len(PROMPTS)
    alone(folders[k], recorder)
    trace = recorder.trace()
    ends = np.cumsum([len(prompt) + STEPS for prompt in PROMPTS])
    rows = (ends - STEPS + np.arange(STEPS)[:, None]).reshape(-1)  # by step, then by sequence
    job = Decoding(
        spec=models.read_shape(str(folders[k])),
        trace=replace(trace, chosen_NLK=trace.chosen_NLK[rows]),
        num_seqs=num_seqs,
        num_steps=STEPS,
        context=8,
        dtype="float32",
    )
    dispatch = ExpertDispatch(placement=random_placement(len(trace.layers), n), return_home=return_home)
    found = simulate(job, dispatch, CostModel(parse_place("sim:a100x4")))
    _, whole = together(folders[k], n, return_home=return_home)
    _, prompts = together(folders[k], n, return_home=return_home, steps=0)
    assert found.traffic == tuple(a - b for a, b in zip(whole, prompts, strict=True))
    assert 0 < found.all_to_all_s < found.seconds
    assert (found.all_gather_s > 0) == (not return_home)


def test_a_simulated_device_must_hold_all_keys_and_values() -> None:
    """A million tokens of 128 KiB are 137 GB, a quarter of them 34."""
    spec = preset("mixtral-8x7b")
    trace = iid_trace(8, 32, 8, k=2)
    job = Decoding(spec=spec, trace=trace, num_seqs=8, num_steps=1, context=131_071)
    away, home = (
        ExpertDispatch(placement=ExpertPlacement.in_order(32, 8, 4), return_home=home)
        for home in (False, True)
    )
    costs = CostModel(parse_place("sim:a100x4"))
    assert simulate(job, home, costs).seconds > 0
    assert job.rank_bytes(away) - job.rank_bytes(home) == 6 * 131_072 * spec.kv_bytes_per_token("bfloat16")
    with pytest.raises(CapacityError, match=r"take 16\d\.\d GB"):
        simulate(job, away, costs)
    with pytest.raises(RangeError, match="a trace of 8 tokens"):
        replace(job, num_steps=2)


def test_keys_and_values_of_all_sequences_must_fit_on_every_rank(folders: dict[int, Path]) -> None:
    """Those of its own fit, as the error says."""
    kept = models.read_shape(str(folders[1])).kv_bytes_per_token("float32")
    cap_bytes = 3 * kept * 2 * BLOCK
    for return_home in (True, False):
        dispatch = ExpertDispatch(placement=random_placement(4, 2), return_home=return_home)
        args = (str(folders[1]), dispatch, PROMPTS, 1, 1, cap_bytes)
        if return_home:
            assert len(run_processes(generate, 2, *args)) == 2
        else:
            with pytest.raises(LightworkError, match="CapacityError: keys and values of 160 tokens"):
                run_processes(generate, 2, *args)


def test_placements_of_other_models_or_ranks_are_refused(folders: dict[int, Path]) -> None:
    for placement, said in (
        (random_placement(3, 2), r"placed are \(3, 8\) experts"),
        (random_placement(4, 4), "experts are placed on 4 ranks in 4 layers"),
    ):
        with pytest.raises(LightworkError, match=said):
            run_processes(generate, 2, str(folders[1]), ExpertDispatch(placement=placement), PROMPTS, 1)
