"""Strategies on real processes: the same file, the same values, the same spans; failures name their rank."""

from __future__ import annotations

import pytest

from lightwork.errors import LightworkError
from lightwork.runtime import Trace

pytest.importorskip("torch", reason="the real backend is torch.distributed")

import rank_strategies as strategies

from lightwork.cluster.devices import Link
from lightwork.parallel.processes import run_processes

SLOW = Link(name="slow", a="device", b="device", bytes_per_s=1e9, latency_s=0.02)

pytestmark = pytest.mark.multiproc


@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_ring_equals_all_reduce(n):
    trace = Trace("real")
    expected = (sum(strategies.numbers(r, n) for r in range(n))).tolist()
    for ring, library in run_processes(strategies.ring_and_collective, n, trace=trace):
        assert ring == library == expected
    sends = [s for s in trace.spans if s.kind == "send"]
    recvs = [s for s in trace.spans if s.kind == "recv"]
    assert len(sends) == len(recvs) == n * 2 * (n - 1)
    assert sum(s.bytes for s in sends) == 2 * (n - 1) * n * 6 * 8
    assert sorted((s.rank, s.peer) for s in sends) == sorted((s.peer, s.rank) for s in recvs)


@pytest.mark.parametrize("n", [1, 3])
def test_every_way_to_sum_gives_the_same_sum_and_messages_take_as_long_as_their_link(n):
    trace = Trace("real")
    expected = (sum(strategies.numbers(r, n) for r in range(n))).tolist()
    for sums in run_processes(strategies.every_all_reduce, n, trace=trace, link=SLOW):
        assert sums == [expected] * 3
    mine = [span for span in trace.spans if span.rank == "0"]
    hops = 2 * (n - 1) + 2 + 1  # of the ring, the star and direct messages, each after the one before
    assert n == 1 or max(s.end_s for s in mine) - min(s.start_s for s in mine) >= hops * 0.02


def test_collectives_mean_what_they_mean_in_simulation():
    for rank, got in enumerate(run_processes(strategies.every_collective, 2)):
        assert got == {
            "broadcast": 0.0,
            "all_gather": [0.0, 1.0],
            "reduce_scatter": 1.0 + 20 * rank,
            "all_to_all": [0.0 + 10 * rank, 1.0 + 10 * rank],
            "pair": 1.0,
        }


@pytest.mark.parametrize("n", [1, 3])
def test_ranks_may_give_different_numbers_of_rows(n):
    for rank, (got, gathered, nothing) in enumerate(run_processes(strategies.ragged_collectives, n)):
        assert got == [[[10.0 * r + rank] * 2] * (r + rank) for r in range(n)]
        assert gathered == [[float(r)] * r for r in range(n)]
        assert nothing == [(0, 3)] * n


def test_messages_are_buffered():
    for got, own in run_processes(strategies.buffered, 2):
        assert got == [float(i) for i in range(20)]
        assert own == 19.0


def test_a_failing_rank_fails_the_run_with_its_traceback():
    with pytest.raises(LightworkError, match="rank 1 of 2 failed: ZeroDivisionError") as caught:
        run_processes(strategies.one_raises, 2)
    assert "_divide" in caught.value.__notes__[0]


def test_a_killed_rank_is_named():
    with pytest.raises(LightworkError, match="rank 1 of 2 failed: it ended with exit code -9"):
        run_processes(strategies.one_is_killed, 2)


def test_a_rank_that_hangs_is_named():
    with pytest.raises(LightworkError, match="rank 0 did not get a message of rank 1, tag 5"):
        run_processes(strategies.one_never_sends, 2, timeout_s=1.0)


def test_what_cannot_block_is_refused():
    with pytest.raises(LightworkError, match="Sleep"):
        run_processes(strategies.sleeps, 1)
