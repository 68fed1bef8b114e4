"""Steps of devices that read their shares, simulated, beside their closed forms."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lightwork.cluster.devices import Cluster, Device, Link, Memory, Unit
from lightwork.memory.residencies.sliding import Sliding
from lightwork.memory.residencies.window import Window
from lightwork.models.presets import preset
from lightwork.parallel.all_reduces import AllReduce
from lightwork.parallel.all_reduces.direct import Direct
from lightwork.parallel.all_reduces.ring import Ring
from lightwork.parallel.all_reduces.star import Star
from lightwork.parallel.by_price import ByPrice
from lightwork.plan.streamed_ranks import predict_ranks

SPEC = replace(preset("llama-2-7b"), num_layers=4)
LINK = Link(name="slow", a="device", b="device", bytes_per_s=40e6, latency_s=2e-3)
FAST = 1e18


def devices(num: int, *, disk: float = FAST, memory: float = FAST) -> Cluster:
    """Whatever is not given takes no time."""
    levels = [
        Memory(name=name, bytes=FAST, read_bytes_per_s=rate, write_bytes_per_s=rate, latency_s=0.0)
        for name, rate in (("memory", memory), ("disk", disk))
    ]
    rates = dict.fromkeys(("matmul/float32", "attention/float32", "vector/float32"), FAST)
    device = Device(name="device", unit=Unit(name="unit", count=1, rates=rates), memories=tuple(levels))
    return Cluster(device=device, num_devices=num, per_node=num, inner=LINK)


def share_bytes(num: int) -> int:
    """Of the first device's weights."""
    layer = SPEC.attention_params + SPEC.mlp_params() // SPEC.num_layers
    return 4 * (SPEC.num_layers * layer // num + SPEC.vocab_size * SPEC.hidden_size)


@pytest.mark.parametrize("num", [1, 2, 4, 8])
def test_where_the_disk_is_slow_a_token_takes_what_the_first_device_reads(num: int) -> None:
    found = predict_ranks(SPEC, devices(num, disk=1e8), Sliding(window=2), Star())
    assert found.pass_s == pytest.approx(share_bytes(num) / 1e8, rel=0.01)
    assert found.copies == 2 * SPEC.num_layers + 1
    assert found.cap_bytes == 2 * 4 * max(
        SPEC.vocab_size * SPEC.hidden_size, SPEC.mlp_params() // SPEC.num_layers // num
    )


@pytest.mark.parametrize("way", [Star(), Ring(), Direct()], ids=repr)
@pytest.mark.parametrize("num", [2, 4, 8])
def test_where_all_is_there_and_links_are_wide_a_token_takes_its_hops(num: int, way: AllReduce) -> None:
    """But for one at most: the first device tells the others its row, while they end the last token's sum."""
    wide = replace(devices(num), inner=replace(LINK, bytes_per_s=FAST))
    found = predict_ranks(SPEC, wide, Window(k=100), way)
    assert found.copies == 0
    hops_s = 2 * SPEC.num_layers * way.seconds(num, 0, LINK)
    assert abs(found.pass_s - hops_s) <= 1.001 * LINK.latency_s


def test_without_a_second_slot_a_layer_is_copied_then_computed() -> None:
    slow = devices(1, disk=1e8, memory=2e8)
    apart, together = (predict_ranks(SPEC, slow, policy, Star()) for policy in (Window(k=1), Window(k=2)))
    assert apart.pass_s == pytest.approx(1.5 * together.pass_s, rel=0.05)


def test_a_sum_goes_the_way_that_is_quickest_for_its_size() -> None:
    """A step of many rows goes round the ring, which is the slowest for a token."""
    ways = (Star(), Direct(), Ring(), ByPrice(link=LINK))
    for num_rows, order in ((1, "ring last"), (4096, "ring first")):
        star_s, direct_s, ring_s, chosen_s = (
            predict_ranks(SPEC, devices(8), Window(k=100), way, num_rows=num_rows).pass_s for way in ways
        )
        assert chosen_s == (ring_s if order == "ring first" else direct_s)
        assert chosen_s <= 1.1 * min(star_s, direct_s, ring_s)
        assert (ring_s < min(star_s, direct_s)) == (order == "ring first")
