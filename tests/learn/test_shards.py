"""Sums over shards: the same wherever the shards are, whatever becomes of their processes."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightwork.errors import LightworkError
from lightwork.learn.shards import (
    Called,
    Here,
    Processes,
    Sums,
    alone,
    children,
    histogram,
    kth_largest,
    order_bits,
    parts,
)


class Rows:
    """A shard of numbers that remembers what it was told."""

    def __init__(self, values: Any) -> None:
        self._values = np.asarray(values, float)
        self._scale = 0.0

    def __len__(self) -> int:
        return len(self._values)

    def scale(self, by: float) -> Sums:
        self._scale = by
        return Sums({})

    def total(self) -> Sums:
        return Sums({"sum": np.array(self._scale * self._values.sum()), "num": np.array(len(self))})

    def histogram(self, prefix: int, shift: int) -> Sums:
        return histogram(order_bits(self._values), prefix, shift)

    def fail(self) -> Sums:
        raise ValueError("no such thing")

    def die(self) -> Sums:
        os.kill(os.getpid(), signal.SIGKILL)
        return Sums({})


@given(
    values=st.lists(st.floats(allow_nan=False), min_size=1, max_size=60),
    num=st.integers(1, 5),
    data=st.data(),
)
def test_the_kth_largest_is_found_by_counting(values: list[float], num: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(values)))
    array = np.array(values)
    map = Here([Rows(array[rows]) for rows in parts(num, len(array))])
    found = alone(kth_largest(Called(map), k))
    bits = np.sort(order_bits(array))
    assert found == bits[-k]
    in_order = array[np.argsort(order_bits(array), kind="stable")]
    assert (in_order[1:] >= in_order[:-1]).all()


@given(num=st.integers(1, 9), rows=st.integers(0, 30))
def test_parts_differ_by_one_row_at_most(num: int, rows: int) -> None:
    sizes = [cut.stop - cut.start for cut in parts(num, rows)]
    assert sum(sizes) == rows
    assert max(sizes) - min(sizes) <= 1


@given(size=st.integers(1, 40), fan_out=st.integers(1, 5))
def test_every_part_but_the_first_is_added_to_one_other(size: int, fan_out: int) -> None:
    below = [child for rank in range(size) for child in children(rank, size, fan_out)]
    assert sorted(below) == [*range(1, size)]


def test_nothing_is_neutral() -> None:
    some = Sums({"x": np.ones(2)})
    assert Sums({}).merge(some) is some
    assert some.merge(Sums({})) is some
    assert some.nbytes == 16


@pytest.mark.multiproc
def test_processes_sum_as_shards_here_do() -> None:
    shards = [Rows(range(n)) for n in (3, 1, 6)]
    with Processes(shards, fresh=("scale",)) as processes:
        for map in (Here(shards), processes):
            map.run("scale", 2.0)
            total = map.run("total")
            assert (float(total["sum"]), int(total["num"])) == (36.0, 10)
        assert processes.num_rows == 10


@pytest.mark.multiproc
def test_a_killed_process_starts_again_and_knows_what_it_was_told() -> None:
    with Processes([Rows(range(4)), Rows(range(5))], fresh=("scale",)) as processes:
        processes.run("scale", 3.0)
        pid = processes.pids[1]
        os.kill(pid, signal.SIGKILL)
        assert float(processes.run("total")["sum"]) == 48.0
        assert processes.pids[1] != pid


@pytest.mark.multiproc
def test_errors_of_shards_are_told() -> None:
    with Processes([Rows([1])]) as processes:
        with pytest.raises(LightworkError, match="no such thing"):
            processes.run("fail")
        with pytest.raises(LightworkError, match="ended 3 times in die"):
            processes.run("die")
