"""Where experts that lie in host memory are computed: the crossover by hand, and what both sides do."""

from __future__ import annotations

import pytest

from lightwork.cluster import parse_place
from lightwork.cluster.pricing import CostModel
from lightwork.memory.expert_sites import ExpertSites
from lightwork.models.presets import preset


@pytest.fixture
def sites() -> ExpertSites:
    return ExpertSites(
        spec=preset("mixtral-8x7b"),
        device=CostModel(parse_place("sim:a100")),
        host=CostModel(parse_place("sim:cpu")),
    )


def test_rows_go_to_the_expert_until_copying_it_is_sooner_done(sites: ExpertSites) -> None:
    """352 MB at 25 GB/s are 14 ms; on two cores a row takes 10 ms of reading, and many the arithmetic."""
    nbytes = 2 * 3 * 4096 * 14_336
    link = parse_place("sim:a100").device.memory("host").read_bytes_per_s
    assert sites.copy_s() == pytest.approx(nbytes / link, rel=0.01)
    assert sites.host_s(1) == pytest.approx(nbytes / 35e9, rel=0.01)
    assert not sites.moves(1)
    assert sites.moves(256)
    crossover = next(rows for rows in range(1, 257) if sites.moves(rows))
    assert sites.host_s(crossover - 1) <= sites.copy_s() + sites.device_s(crossover - 1)
    assert all(sites.moves(rows) for rows in (crossover, 2 * crossover, 1024))


def test_a_token_is_computed_where_its_experts_lie(sites: ExpertSites) -> None:
    found = sites.split([0, 1, 0, 1, 0, 0, 0, 0], here={1})
    assert (found.moved, found.hosted) == ((), (3,))
    assert found.seconds == pytest.approx(sites.host_s(1))


def test_experts_with_many_rows_come_and_the_host_computes_the_others(sites: ExpertSites) -> None:
    rows = [500, 1, 400, 2, 300, 0, 1, 5]
    found = sites.split(rows, here={0})
    assert {2, 4} <= {*found.moved}
    assert {1, 3, 6} <= {*found.hosted}
    assert {*found.moved} | {*found.hosted} == {1, 2, 3, 4, 6, 7}
    assert min(rows[e] for e in found.moved) >= max(rows[e] for e in found.hosted)
    alone = [
        sum(sites.host_s(rows[e]) for e in (1, 2, 3, 4, 6, 7)),
        6 * sites.copy_s() + sites.device_s(1),
    ]
    assert found.seconds < min(alone)


def test_nothing_is_away(sites: ExpertSites) -> None:
    found = sites.split([3, 0, 4, 0, 0, 0, 0, 0], here={0, 2})
    assert found == ((), (), sites.device_s(3) + sites.device_s(4))
