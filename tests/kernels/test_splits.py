"""Every split computes every tile exactly once; Lean's workers end together; the makespan is a queue's."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightwork.cluster import parse_place
from lightwork.errors import RangeError
from lightwork.kernels.makespan import makespan
from lightwork.kernels.splits import Grid, Split
from lightwork.kernels.splits.flash_decoding import FlashDecoding, choose_splits
from lightwork.kernels.splits.lean import Lean
from lightwork.kernels.splits.one_per_head import OnePerHead
from lightwork.techniques import listing, parse

SPLITS: list[Split] = [parse(t.name) for t in listing() if t.kind == "split"]
SPLITS += [FlashDecoding(splits=n) for n in (1, 3, 128)]
GRIDS = st.builds(
    Grid.of,
    st.lists(st.integers(0, 5000), max_size=9),
    heads=st.integers(1, 9),
    tile=st.sampled_from((1, 7, 64, 256)),
    workers=st.integers(1, 140),
)
every_split = pytest.mark.parametrize("split", SPLITS, ids=repr)


def test_splits_are_found_by_listing():
    assert {type(s) for s in SPLITS} == {Lean, FlashDecoding, OnePerHead}


@every_split
@given(grid=GRIDS)
def test_every_tile_is_in_exactly_one_run_and_runs_are_in_order(split: Split, grid: Grid):
    runs = split.runs(grid)
    assert runs.dtype == np.int64
    assert runs.shape == (len(runs), 2)
    assert (runs[:, 0] < runs[:, 1]).all()
    assert [0, *runs[:, 1]] == [*runs[:, 0], grid.total]


@every_split
@given(grid=GRIDS)
def test_the_same_grid_gives_the_same_runs(split: Split, grid: Grid):
    again = replace(grid, keys=grid.keys.copy())
    np.testing.assert_array_equal(split.runs(grid), split.runs(again))


@every_split
@pytest.mark.parametrize("keys", [[], [0], [0, 0, 0]])
def test_no_keys_are_no_runs(split: Split, keys: list[int]):
    assert len(split.runs(Grid.of(keys, heads=4, tile=64, workers=3))) == 0


@every_split
def test_a_sequence_without_keys_among_others_gets_no_run(split: Split):
    with_empty = Grid.of([300, 0, 17], heads=2, tile=64, workers=4)
    without = Grid.of([300, 17], heads=2, tile=64, workers=4)
    if not isinstance(split, FlashDecoding) or split.splits:  # heads without keys count when it chooses
        np.testing.assert_array_equal(split.runs(with_empty), split.runs(without))
    assert split.runs(with_empty)[-1, 1] == without.total == 2 * (5 + 1)


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({"keys": [-1]}, "a sequence has -1 keys"),
        ({"keys": [5, 1.5]}, "keys are float64"),
        ({"keys": [float("nan")]}, "keys are float64"),
        ({"keys": [[1, 2]]}, "of shape"),
        ({"keys": [True]}, "keys are bool"),
        ({"keys": 7}, "of shape"),
        ({"keys": [1 << 62]}, "tiles for"),
        ({"keys": [1 << 64]}, "keys are"),
        ({"heads": 0}, "heads is 0"),
        ({"tile": 0}, "tile is 0"),
        ({"workers": 0}, "workers is 0"),
        ({"workers": -3}, "workers is -3"),
        ({"workers": 1 << 21}, "workers"),
    ],
)
def test_an_impossible_grid_is_refused(given_: dict, words: str):
    settings = {"keys": [100], "heads": 2, "tile": 64, "workers": 4} | given_
    with pytest.raises(RangeError, match=words) as error:
        Grid.of(settings.pop("keys"), **settings)
    assert error.value.expected


def test_a_negative_number_of_parts_is_refused():
    with pytest.raises(RangeError, match="-1 parts"):
        FlashDecoding(splits=-1)


@given(grid=GRIDS)
def test_lean_workers_end_at_most_one_tile_apart(grid: Grid):
    runs = Lean().runs(grid)
    tiles = runs[:, 1] - runs[:, 0]
    assert len(runs) == min(grid.total, grid.workers)
    if grid.total:
        assert tiles.max() - tiles.min() <= 1
        mean = grid.total / grid.workers
        assert tiles.max() / mean <= 1 + grid.workers / grid.total + 1e-12


@given(grid=GRIDS, splits=st.integers(0, 130))
def test_parts_of_flash_decoding_stay_in_their_head_and_are_equal(grid: Grid, splits: int):
    runs = FlashDecoding(splits=splits).runs(grid)
    for start, end in pairwise(grid.first):
        inside = runs[(runs[:, 0] >= start) & (runs[:, 0] < end)]
        sizes = inside[:, 1] - inside[:, 0]
        assert sizes.sum() == end - start
        assert len(set(sizes[:-1])) <= 1
        assert len(sizes) <= (splits or 128)


def test_one_run_per_head():
    runs = OnePerHead().runs(Grid.of([130, 64, 0, 1], heads=2, tile=64, workers=99))
    assert (runs[:, 1] - runs[:, 0]).tolist() == [3, 3, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("heads", "tiles", "workers", "splits"),
    [
        (48, 64, 108, 2),  # the published program's own example: 2 parts fill 89 %, 3 only 67 %
        (87, 512, 108, 1),  # 80 % of the workers are enough
        (108, 512, 108, 1),
        (1, 512, 108, 103),  # 5 tiles each; 102 parts would be 6 each, as 86 are
        (12, 1, 108, 1),
        (0, 0, 108, 1),
    ],
)
def test_flash_decoding_chooses_as_published(heads: int, tiles: int, workers: int, splits: int):
    assert choose_splits(heads, tiles, workers) == splits


def span(split: Split, keys: list[int], *, heads: int = 8, workers: int = 108, place: str = "sim:a100"):
    grid = Grid.of(keys, heads=heads, tile=256, workers=workers)
    return makespan(split, grid, place, head_size=64)


def test_a_makespan_is_the_queue_of_its_runs():
    """Nine equal heads on eight workers are two waves, after the launch."""
    device = parse_place("sim:a100").device
    memory = device.memory()
    one, two = (span(OnePerHead(), [1 << 16], heads=n, workers=8).seconds for n in (8, 9))
    kv_bytes = 4 * 64 * (1 << 16) + 4 * 66
    wave_s = kv_bytes * 8 / memory.read_bytes_per_s + 2 * memory.latency_s
    assert one == pytest.approx(device.unit.launch_s + wave_s)
    assert two == pytest.approx(device.unit.launch_s + 2 * wave_s)


def test_folding_is_a_second_launch_only_where_heads_are_cut():
    device = parse_place("sim:a100").device
    whole, cut = (span(split, [1 << 16] * 8, workers=64) for split in (OnePerHead(), FlashDecoding(splits=2)))
    assert cut.seconds - whole.seconds > device.unit.launch_s
    assert span(Lean(), [1 << 16] * 8, workers=64).seconds == whole.seconds


@every_split
@given(grid=GRIDS)
def test_no_split_is_faster_than_its_tiles(split: Split, grid: Grid):
    seen = makespan(split, grid, "sim:h100", head_size=128)
    assert 0.0 < seen.share <= 1.0
    assert (seen.seconds > 0) == (grid.total > 0)


def test_long_contexts_and_few_heads_gain_most():
    def gain(keys: int, heads: int) -> float:
        return span(OnePerHead(), [keys], heads=heads).seconds / span(Lean(), [keys], heads=heads).seconds

    assert gain(1 << 19, 16) > 1.5 * gain(1 << 12, 16) > 1.5
    assert gain(1 << 17, 8) > gain(1 << 17, 32) > gain(1 << 17, 108) == pytest.approx(1.0, abs=0.02)


def test_ragged_batches_keep_lean_busy():
    ragged = [1 << 10, 1 << 12, 1 << 14, 1 << 17]
    assert span(Lean(), ragged).share > 0.9
    assert span(FlashDecoding(), ragged).share < 0.8
    assert span(OnePerHead(), ragged).share < 0.1
