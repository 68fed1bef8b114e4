"""The probe: levels from curves, spreads, refusals, a description of this machine. No absolute times."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightwork.cluster import Cluster, parse_place
from lightwork.cluster import probe as package
from lightwork.cluster.probe import Prediction, Report, Sample, detect_levels, memory, probe, survey
from lightwork.cluster.probe.describe import describe
from lightwork.cluster.probe.samples import Bench, measure
from lightwork.cluster.probe.validate import HeldOut, compare
from lightwork.errors import LightworkError
from lightwork.runtime import Work

SWEEP = [int((4 << 10) * 1.5**i) for i in range(26)]
CACHES = ((48 << 10, 1.8e-9), (2 << 20, 4.5e-9), (32 << 20, 25e-9), (None, 150e-9))


def curve(caches, sweep=SWEEP) -> list[tuple[int, float]]:
    """Latency of a hierarchy of caches: past a capacity, misses grow with the footprint."""
    seen = []
    for size in sweep:
        seconds, reached = 0.0, 1.0
        for capacity, latency_s in caches:
            hit = 1.0 if capacity is None else min(1.0, capacity / size) ** 3
            seconds += reached * hit * latency_s
            reached *= 1 - hit
        seen.append((size, seconds))
    return seen


@pytest.mark.parametrize("num", [1, 2, 3, 4])
def test_levels_are_found_within_one_step_of_the_sweep(num: int):
    caches = CACHES[: num - 1] + CACHES[-1:]
    found = detect_levels(curve(caches))
    assert len(found) == num
    for level, (capacity, latency_s) in zip(found, caches, strict=True):
        assert level.latency_s == pytest.approx(latency_s, rel=0.25)
        if capacity is None:
            assert level.bytes is None
        else:
            assert capacity / 1.5**1.01 <= level.bytes <= capacity * 1.5


@given(seed=st.integers(0, 10_000), burst=st.integers(0, len(SWEEP) - 2))
def test_other_work_does_not_invent_levels(seed: int, burst: int):
    """Noise of 3 %, and one footprint that was measured while something else ran."""
    rng = np.random.default_rng(seed)
    noisy = [(n, s * (1 + 0.03 * abs(rng.standard_normal()))) for n, s in curve(CACHES[1:])]
    noisy[burst] = (noisy[burst][0], noisy[burst][1] * 4)
    found = detect_levels(noisy)
    assert len(found) == 3
    assert found[0].bytes == pytest.approx(CACHES[1][0], rel=0.51)


@given(seconds=st.lists(st.floats(1e-10, 1e-5), max_size=20))
def test_latency_only_grows_outwards(seconds: list[float]):
    found = detect_levels([(4096 << i, s) for i, s in enumerate(seconds)])
    latencies = [level.latency_s for level in found]
    assert latencies == sorted(latencies)
    sizes = [level.bytes for level in found[:-1]]
    assert sizes == sorted(sizes)
    assert bool(found) == bool(seconds)


def test_a_sample_is_its_median_with_its_spread():
    sample = Sample(name="x", method="m", values=(1.0, 2.0, 3.0, 4.0, 100.0))
    assert (sample.median, sample.spread) == (3.0, pytest.approx(2 / 3))
    assert sample.source == "measured: m; median of 5, spread 67%"
    assert Sample(name="x", method="m", values=(2.0,)).spread == 0.0


def test_benches_are_timed_in_turn():
    calls: list[str] = []
    benches = [
        Bench(name=name, method="m", fn=lambda name=name: calls.append(name), once=True) for name in "ab"
    ]
    samples = measure(benches, 3)
    assert "".join(calls) == "ab" + "ab" * 3
    assert [len(s.values) for s in samples] == [3, 3]
    assert all(v > 0 for s in samples for v in s.values)


def test_a_chase_visits_every_line_once():
    cycle = memory._cycle(100)
    at, seen = 0, set()
    for _ in range(100):
        seen.add(at)
        at = int(cycle[at])
    assert (at, len(seen)) == (0, 100)
    assert all(place % 8 == 0 for place in seen)


def report(spread: float = 0.0, share: float = 1.0, region_s: float = 2e-6) -> Report:
    values = (1.0 - spread, 1.0 - spread, 1.0, 1.0 + spread, 1.0 + spread)
    sample = Sample(name="read/l1/2", method="m", values=values)
    region = Sample(name="call/region", method="m", values=(region_s,))
    machine, samples = parse_place("sim:cpu"), (sample, region)
    return Report(machine=machine, samples=samples, declared={}, share=share, predictions=())


@pytest.mark.parametrize(
    ("unsteady", "words"),
    [
        (report(spread=0.3), "read/l1/2"),
        (report(share=0.5), "50% of a core"),
        (report(region_s=8e-3), "8.0 ms"),
    ],
)
def test_an_unsteady_machine_is_not_written_down_unless_forced(unsteady, words, tmp_path, monkeypatch):
    monkeypatch.setattr(package, "survey", lambda **_: unsteady)
    file = tmp_path / "machine.json"
    with pytest.raises(LightworkError, match=words) as error:
        probe(file)
    assert error.value.expected
    assert error.value.fix
    assert not file.exists()
    assert probe() == probe(file, force=True) == unsteady.machine
    assert parse_place(f"sim:{file}") == unsteady.machine


def chased(swings: dict[int, float]) -> tuple[Sample, ...]:
    """Chases over SWEEP on a machine of L1 and memory; the footprints named swing by these shares."""
    made = []
    for size, seconds in curve((CACHES[0], CACHES[-1])):
        swing = swings.get(size, 0.01)
        values = tuple(seconds * (1 + swing * (i % 2)) for i in range(8))
        made.append(Sample(name=f"chase/{size}", method="m", values=values))
    return tuple(made)


def levels_of(samples: tuple[Sample, ...]):
    return detect_levels([(size, min(s.values)) for size, s in memory.footprints(samples)])


def test_footprints_around_a_capacity_may_swing():
    """They are bimodal wherever the machine is quiet, and no value of the description."""
    l1 = levels_of(chased({}))[0]
    around = [SWEEP[i] for i, size in enumerate(SWEEP[:-2]) if size == l1.bytes for i in (i, i + 1, i + 2)]
    samples = chased(dict.fromkeys(around, 1.0))
    found = levels_of(samples)
    assert [level.bytes for level in found] == [l1.bytes, None]
    assert max(s.spread for s in samples) > 0.6
    steady = report(spread=0.1)
    replace(steady, samples=(*steady.samples, *samples, *memory.plateaus(found, samples))).check()


@pytest.mark.parametrize("level", [0, 1])
def test_a_plateau_that_swings_is_refused(level: int):
    flat = levels_of(chased({}))[level].plateau
    samples = chased(dict.fromkeys(flat, 0.9))
    steady = report(spread=0.1)
    every = (*steady.samples, *samples, *memory.plateaus(levels_of(samples), samples))
    with pytest.raises(LightworkError, match=f"latency/{['l1', 'memory'][level]} swings by"):
        replace(steady, samples=every).check()


def test_a_level_is_described_by_its_plateau():
    samples = chased({})
    found = levels_of(samples)
    l1, main = memory.plateaus(found, samples)
    assert [len(s.values) for s in (l1, main)] == [8, 8]
    assert l1.median == pytest.approx(found[0].latency_s, rel=0.02)
    assert main.median == pytest.approx(found[1].latency_s, rel=0.02)
    assert set(found[0].plateau).isdisjoint(found[1].plateau)
    assert l1.method.endswith(f"{len(found[0].plateau)} footprints")


def test_a_cache_slower_than_memory_is_refused_however_steady():
    """Streams that wait for a core swing by nothing: each repeat waits for the same time slice."""
    steady = report(spread=0.1)
    memory = steady.machine.device.memory()

    def with_cache(read_bytes_per_s: float) -> Report:
        cache = replace(memory, name="l1", read_bytes_per_s=read_bytes_per_s)
        device = replace(steady.machine.device, memories=(cache, memory))
        return replace(steady, machine=replace(steady.machine, device=device))

    with_cache(2 * memory.read_bytes_per_s).check()
    with pytest.raises(LightworkError, match=r"l1 reads at 0\.2 GB/s, slower than memory"):
        with_cache(2e8).check()


def test_a_steady_machine_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(package, "survey", lambda **_: report(spread=0.1))
    assert probe(tmp_path / "m.json") == Cluster.from_dict(json.loads((tmp_path / "m.json").read_text()))
    with pytest.raises(LightworkError, match="cannot be written: File exists"):
        probe(tmp_path / "m.json" / "new.json")


def test_predictions_are_prices():
    machine = parse_place("sim:cpu")
    kernel = HeldOut(name="k", fn=lambda: None, kind="matmul", dtype="float32", ops=1e9, moved=1e6, rows=256)
    assert kernel.work(machine.device) == Work(ops=1e9, bytes=1e6, rows=256)
    (prediction,) = compare(machine, [kernel], [Sample(name="k", method="m", values=(0.005,))])
    assert prediction.predicted_s == pytest.approx(1e9 / 180e9, rel=1e-2)
    assert prediction.error == pytest.approx(abs(prediction.predicted_s / 0.005 - 1))
    assert Prediction(name="k", predicted_s=2.0, measured_s=1.0, spread=0.0).error == 1.0


@pytest.fixture(scope="module")
def measured() -> Report:
    pytest.importorskip("numba")
    return survey(quick=True)


def test_this_machine_has_a_complete_description(measured: Report):
    machine = measured.machine
    device = machine.device
    assert Cluster.from_dict(json.loads(json.dumps(machine.to_dict()))) == machine
    assert set(device.constants()) == set(device.sources)
    assert set(machine.sources) == {"inner"}
    for source in device.sources.values():
        assert source.startswith(("measured: ", "assumed: ", "absent: ")), source
    assert [m.name for m in device.memories][-2:] == ["memory", "disk"]
    assert all(m.bytes > 0 and m.read_bytes_per_s > 0 and m.write_bytes_per_s > 0 for m in device.memories)
    assert all(rate > 0 for rate in device.unit.rates.values())
    assert all(0 < share <= 1 for points in device.unit.curves.values() for _, share in points)
    assert 0 < measured.share < 1.5


def test_memory_is_slower_than_the_innermost_cache(measured: Report):
    chased = {size: min(sample.values) for size, sample in memory.footprints(measured.samples)}
    assert chased[min(chased)] < chased[max(chased)]


def test_a_machine_without_numba_or_torch_has_the_same_schema(monkeypatch: pytest.MonkeyPatch, measured):
    for module in (memory, package.rates):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert memory.chases(True) == []
    benches = [*memory.streams((), True), *package.rates.benches(True)]
    others = [s for s in measured.samples if s.name.split("/")[1] in ("disk", "pipe")]
    machine = describe([*measure(benches, 1), *others], (), {})
    assert set(machine.device.constants()) == set(machine.device.sources)
    assert [m.name for m in machine.device.memories] == ["memory", "disk"]
    assert set(machine.device.unit.rates) == {"matmul/float32", "vector/float32"}
    assert machine.device.sources["memory.latency_s"].startswith("absent")


def test_declared_sizes_are_read_as_the_system_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said = (("Data", "48K", "1"), ("Instruction", "32K", "1"), ("Unified", "2048K", "2"))
    for i, (kind, size, level) in enumerate(said):
        folder = tmp_path / f"index{i}"
        folder.mkdir()
        for name, text in (("type", kind), ("size", size), ("level", level)):
            (folder / name).write_text(text + "\n")
    (tmp_path / "index9").mkdir()
    monkeypatch.setattr(memory, "CACHES", tmp_path)
    assert memory.declared() == {"l1": 48 << 10, "l2": 2 << 20}
