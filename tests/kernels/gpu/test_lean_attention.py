"""Lean attention against the torch reference, and to the bit against itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import BLOCK, NUM_BLOCKS, SMALL_TILES, STEPS, lean, make_rows, random_qkv, reference, scattered

from lightwork.errors import InvariantError
from lightwork.kernels.gpu.tasks import TILES, plan_tasks

HEADS = {"G1": ((2, 2), 128), "G4": ((4, 1), 64), "G8": ((8, 1), 128)}


@pytest.mark.parametrize(("heads", "window"), [("G1", 40), ("G4", None), ("G4", 40), ("G8", None)])
@pytest.mark.parametrize("step", STEPS)
def test_it_equals_the_reference(step: str, heads: str, window: int | None) -> None:
    rows = make_rows(STEPS[step], scattered())
    q, keys, values = random_qkv(len(rows.tokens), *HEADS[heads], torch.float32, "cpu")
    got = lean(rows, q, keys, values, window=window)
    torch.testing.assert_close(got, reference(rows, q, keys, values, window), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("size", "dtype", "atol"),
    [(64, torch.float32, 1e-5), (128, torch.float16, 2e-3), (12, torch.float32, 1e-5)],
)
def test_decodes_of_other_head_sizes_and_types(size: int, dtype: torch.dtype, atol: float) -> None:
    """Not bfloat16, whose products the interpreter cannot form; `tests/gpu` has it."""
    rows = make_rows(STEPS["decodes"], scattered())
    q, keys, values = random_qkv(len(rows.tokens), (6, 2), size, dtype, "cpu")
    got = lean(rows, q, keys, values)
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), reference(rows, q, keys, values, None), atol=atol, rtol=0)


def test_the_tiles_that_are_served_give_the_same() -> None:
    rows = make_rows(STEPS["trees"], scattered())
    q, keys, values = random_qkv(len(rows.tokens), (4, 2), 64, torch.float32, "cpu")
    got = lean(rows, q, keys, values, tiles=TILES)
    torch.testing.assert_close(got, reference(rows, q, keys, values, None), atol=1e-5, rtol=0)


@pytest.mark.parametrize("step", ["decodes", "trees"])
def test_the_number_of_programs_changes_no_bit(step: str) -> None:
    rows = make_rows(STEPS[step], scattered())
    q, keys, values = random_qkv(len(rows.tokens), (2, 1), 64, torch.float32, "cpu")
    one, *others = [lean(rows, q, keys, values, units=units) for units in (1, 2, 3, 7)]
    assert all(torch.equal(one, other) for other in others)


@pytest.mark.parametrize("step", STEPS)
def test_who_else_is_in_the_batch_changes_no_bit(step: str) -> None:
    rows = make_rows(STEPS[step], scattered())
    q, keys, values = random_qkv(len(rows.tokens), (2, 1), 64, torch.float32, "cpu")
    together = lean(rows, q, keys, values)
    for s, shape in enumerate(STEPS[step]):
        mine = np.flatnonzero(rows.seqs == s)
        alone = make_rows([shape], [b for b in rows.tables[s].tolist() if b >= 0])
        assert torch.equal(lean(alone, q[mine], keys, values), together[mine])


def test_rows_that_see_nothing_and_padding_give_zeros() -> None:
    rows = make_rows([(0, 1, ()), (20, 1, ())], scattered())
    rows.known[0] = 0
    q, keys, values = random_qkv(4, (4, 2), 64, torch.float32, "cpu")
    got = lean(rows, q, keys, values, padding=2)
    assert torch.equal(got[[0, 2, 3]], torch.zeros(3, 4, 64))
    assert got[1].abs().min() > 0


@pytest.mark.parametrize("block", [-1, NUM_BLOCKS])
def test_a_block_outside_the_pool_is_refused(block: int) -> None:
    rows = make_rows(STEPS["decodes"], scattered())
    rows.tables[2, 3] = block
    q, keys, values = random_qkv(4, (2, 2), 64, torch.float32, "cpu")
    with pytest.raises(InvariantError, match="block 3 of sequence 2"):
        lean(rows, q, keys, values)


def test_a_slot_outside_the_pool_and_a_short_table_are_refused() -> None:
    q, keys, values = random_qkv(4, (2, 2), 64, torch.float32, "cpu")
    rows = make_rows(STEPS["decodes"], scattered())
    rows.slots[1] = NUM_BLOCKS * BLOCK
    with pytest.raises(InvariantError, match="slot"):
        lean(rows, q, keys, values)
    rows = make_rows(STEPS["decodes"], scattered())
    rows.tables = rows.tables[:, :10]
    with pytest.raises(InvariantError, match="table of 10 blocks"):
        lean(rows, q, keys, values)


def test_rows_that_skip_keys_are_refused() -> None:
    rows = make_rows([(4, 3, ())], scattered())
    rows.index[2] += 1
    with pytest.raises(InvariantError, match="skip keys"):
        plan_tasks(rows, 2, 4, None)


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("step", STEPS)
def test_tasks_cover_every_key_once_and_partials_do_not_overlap(step: str, window: int | None) -> None:
    rows = make_rows(STEPS[step], scattered())
    plan = plan_tasks(rows, 2, 4, window, SMALL_TILES)
    written: list[int] = []
    for tile, tasks in plan.parts:
        for row, num_rows, head, begin, end, out, *_ in tasks.tolist():
            assert 0 < end - begin <= tile.chunk
            assert begin % tile.chunk == 0
            assert num_rows * 4 <= tile.lanes
            written += range(out, out + num_rows * 4)
            assert head in (0, 1)
            assert end <= rows.index[row + num_rows - 1] + 1
    assert sorted(written) == list(range(plan.num_partials))
    for row in range(len(rows.seqs)):
        own = [
            range(t[3], t[4])
            for _, tasks in plan.parts
            for t in tasks.tolist()
            if t[0] <= row < t[0] + t[1] and t[2] == 1
        ]
        keys = [key for part in own for key in part]
        assert len(own) == plan.folds[row, 1]
        assert keys == list(range(keys[0], keys[-1] + 1))
        assert keys[-1] >= rows.index[row]
        least = 0 if window is None else max(0, int(rows.positions[row]) - window + 1)
        assert keys[0] <= least


def test_ragged_lengths_are_dealt_out_evenly() -> None:
    """At most one task more than the fair share, whatever the lengths."""
    rows = make_rows([(1023, 1, ())] + [(i, 1, ()) for i in (0, 5, 40, 16)], list(range(NUM_BLOCKS)))
    tasks = plan_tasks(rows, 8, 4, None).parts[0][1]
    for workers in (3, 7, 132):
        bounds = np.arange(workers + 1) * len(tasks) // workers
        assert np.diff(bounds).max() <= len(tasks) / workers + 1
    assert (tasks[:, 4] - tasks[:, 3]).max() == TILES[0].chunk
