"""Machine descriptions: every constant has a source, JSON gives them back, places are found or refused."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightwork.cluster import Cluster, Device, Link, Memory, Unit, parse_place
from lightwork.cluster.devices import interpolate
from lightwork.cluster.presets import names
from lightwork.errors import RangeError, SpecError

POSITIVE = st.floats(min_value=1e-12, max_value=1e18)
KINDS = st.sampled_from(("matmul/float32", "matmul/bfloat16", "vector/float32"))
CURVES = st.lists(
    st.tuples(st.integers(1, 4096), st.floats(0.01, 1)), min_size=1, max_size=5, unique_by=lambda p: p[0]
).map(lambda points: tuple(sorted(points)))
UNITS = st.builds(
    Unit,
    name=st.text(max_size=8),
    count=st.integers(1, 10_000),
    rates=st.dictionaries(KINDS, POSITIVE),
    launch_s=POSITIVE,
    curve=CURVES,
    tile_rows=st.integers(1, 256),
    curves=st.dictionaries(KINDS, CURVES),
)
MEMORIES = st.builds(
    Memory,
    name=st.text(max_size=8),
    bytes=POSITIVE,
    read_bytes_per_s=POSITIVE,
    write_bytes_per_s=POSITIVE,
    latency_s=POSITIVE,
)
LINKS = st.builds(
    Link,
    name=st.just("inner"),
    a=st.just("device"),
    b=st.just("device"),
    bytes_per_s=POSITIVE,
    latency_s=POSITIVE,
    duplex=st.booleans(),
)
DEVICES = st.builds(
    Device,
    name=st.text(max_size=8),
    unit=UNITS,
    memories=st.lists(MEMORIES, max_size=3).map(tuple),
    step_s=POSITIVE,
    sharing=st.dictionaries(st.sampled_from(["memory", "network"]), CURVES, max_size=2),
    sources=st.dictionaries(st.text(max_size=5), st.text(max_size=5)),
)
CLUSTERS = st.builds(
    Cluster,
    device=DEVICES,
    num_devices=st.integers(1, 1 << 20),
    per_node=st.integers(1, 16),
    inner=st.none() | LINKS,
    outer=st.none() | LINKS,
    sources=st.dictionaries(st.text(max_size=5), st.text(max_size=5)),
)


@given(cluster=CLUSTERS)
def test_json_gives_a_description_back(cluster: Cluster):
    assert Cluster.from_dict(json.loads(json.dumps(cluster.to_dict()))) == cluster


@pytest.mark.parametrize("name", names())
def test_every_constant_of_a_preset_has_a_source(name: str):
    cluster = parse_place(f"sim:{name}x16")
    sources = cluster.device.sources
    assert set(cluster.device.constants()) == set(sources)
    links = [link for link in (cluster.inner, cluster.outer) if link]
    protocols = [f"{link.name}.protocols" for link in links if link.protocols]
    assert {*(link.name for link in links), *protocols} == set(cluster.sources)
    for source in (*sources.values(), *cluster.sources.values()):
        assert source.startswith(("measured: ", "published: ", "assumed: ")), source


@pytest.mark.parametrize("name", names())
def test_a_preset_is_a_possible_machine(name: str):
    cluster = parse_place(f"sim:{name}")
    unit = cluster.device.unit
    assert all(rate > 0 for rate in unit.rates.values())
    assert [r for r, _ in unit.curve] == sorted({r for r, _ in unit.curve})
    assert all(0 < share <= 1 for _, share in unit.curve)
    assert unit.curve[-1][1] == 1.0
    assert cluster.device.memory().bytes > 0
    assert json.loads(json.dumps(cluster.to_dict()))["device"]["name"] == name


@pytest.mark.parametrize(
    ("place", "nodes"), [("sim:a100", 1), ("sim:a100x8", 1), ("sim:h100x64", 8), ("sim:cpux4", 4)]
)
def test_a_place_counts_devices(place: str, nodes: int):
    cluster = parse_place(place)
    assert -(-cluster.num_devices // cluster.per_node) == nodes


@pytest.mark.parametrize(
    "place", ["sim:a1000", "sim:h10", "h100", "sim:", "sim:h100x", "sim:h100x-1", "cuda:0"]
)
def test_an_unknown_place_is_refused(place: str):
    with pytest.raises(SpecError) as error:
        parse_place(place)
    assert "sim:a100" in error.value.expected
    assert error.value.fix


def test_the_nearest_place_is_named():
    with pytest.raises(SpecError) as error:
        parse_place("sim:mi250x8x")
    assert "mi250x" in error.value.fix
    with pytest.raises(SpecError) as error:
        parse_place("sim:a1000x4")
    assert "a100" in error.value.fix


@pytest.mark.parametrize("count", ["0", "99999999"])
def test_an_impossible_number_of_devices_is_refused(count: str):
    with pytest.raises(RangeError):
        parse_place(f"sim:a100x{count}")


def test_a_written_description_is_a_place(tmp_path):
    file = tmp_path / "machine.json"
    file.write_text(json.dumps(parse_place("sim:cpu").to_dict()))
    assert parse_place(f"sim:{file}") == parse_place("sim:cpu")
    file.write_text('{"device": 3}')
    with pytest.raises(SpecError):
        parse_place(f"sim:{file}")
    with pytest.raises(SpecError, match="not a readable"):
        parse_place("sim:absent.json")


@pytest.mark.parametrize("data", [{}, {"device": None}, {"device": {"name": "x"}}])
def test_a_foreign_description_is_refused(data: dict):
    with pytest.raises(SpecError):
        Cluster.from_dict(data)


def test_what_a_device_lacks_is_named():
    cluster = parse_place("sim:cpu")
    with pytest.raises(SpecError, match="float16"):
        cluster.device.unit.rate("matmul", "float16")
    with pytest.raises(SpecError, match="hbm"):
        cluster.device.memory("hbm")
    with pytest.raises(SpecError, match="not connected"):
        Cluster(device=cluster.device, num_devices=2).link(0, 1)


def test_a_curve_is_straight_between_its_points_and_flat_outside():
    curve = ((2, 0.2), (4, 0.6))
    assert [interpolate(curve, x) for x in (1, 2, 3, 4, 5)] == pytest.approx([0.2, 0.2, 0.4, 0.6, 0.6])


def test_a_kind_may_have_its_own_curve():
    unit = Unit(name="u", count=1, rates={}, curves={"matmul/bfloat16": ((1, 0.5),)})
    assert unit.share(8, "matmul", "bfloat16") == 0.5
    assert unit.share(8, "matmul", "float32") == 1.0


def test_a_footprint_lives_in_the_innermost_memory_that_holds_it():
    def memory(name: str, size: float) -> Memory:
        return Memory(name=name, bytes=size, read_bytes_per_s=1.0, write_bytes_per_s=1.0, latency_s=1.0)

    unit = Unit(name="u", count=1, rates={})
    device = Device(name="d", unit=unit, memories=(memory("l1", 10), memory("memory", 100)))
    assert [device.level(n) for n in (5, 10, 11, 1000)] == ["l1", "l1", "memory", "memory"]


def test_generations_rank_as_published():
    """Matrix rates and memory bandwidths grow with the generation; H200 is H100 with faster memory."""
    v100, a100, h100, h200 = (parse_place(f"sim:{n}").device for n in ("v100", "a100", "h100", "h200"))
    rates = [d.unit.rates["matmul/float16"] for d in (v100, a100, h100)]
    assert rates == sorted(rates)
    assert 2.0 < rates[2] / rates[1] < 3.6
    reads = [d.memory().read_bytes_per_s for d in (v100, a100, h100, h200)]
    assert reads == sorted(reads)
    assert h200.unit.rates == h100.unit.rates
    assert h100.memory().latency_s < a100.memory().latency_s  # DRAM plateaus: 364 and 398 ns


@pytest.mark.parametrize(
    ("name", "rows", "low", "high"),
    [
        ("a100", 256, 195e12, 215e12),
        ("a100", 512, 215e12, 240e12),
        ("a100", 2048, 215e12, 240e12),
        ("h100", 256, 380e12, 420e12),
        ("h100", 512, 600e12, 660e12),
        ("h100", 2048, 730e12, 770e12),
    ],
)
def test_dense_layers_reach_the_profiled_rates(name: str, rows: int, low: float, high: float):
    """Profiles of Llama-2-7B layers published with Vidur."""
    unit = parse_place(f"sim:{name}").device.unit
    assert low <= unit.rate("matmul", "bfloat16") * unit.share(rows) <= high


def test_importing_machines_and_the_probe_loads_no_heavy_library():
    code = "import sys, lightwork.cluster.probe; print({'torch', 'numba'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
