"""The detector on pointer chases that others published, and the presets made of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightwork.cluster import parse_place
from lightwork.cluster.probe import Level, detect_levels

PUBLISHED = json.loads((Path(__file__).parent / "published_chases.json").read_text(encoding="utf-8"))

SWEEP_STEP = 1.25


def levels(name: str) -> tuple[Level, ...]:
    cycle_s = 1e-6 / PUBLISHED[name]["mhz"]
    return detect_levels([(kib << 10, cycles * cycle_s) for kib, cycles in PUBLISHED[name]["curve"]])


@pytest.mark.parametrize(
    ("name", "l1_bytes", "l2_bytes"),
    [("a100", 192 << 10, 20 << 20), ("h800", 256 << 10, 25 << 20), ("4090", 128 << 10, 72 << 20)],
)
def test_capacities_are_found_in_published_curves(name: str, l1_bytes: int, l2_bytes: int):
    """L1 shares its memory with the scratch pad; of a two-part L2 (A100, H800) the near half is found."""
    l1, l2, main = levels(name)
    assert l1_bytes / 2 <= l1.bytes <= l1_bytes
    assert l2_bytes / SWEEP_STEP <= l2.bytes <= l2_bytes * SWEEP_STEP
    assert main.bytes is None


@pytest.mark.parametrize(
    ("name", "nanoseconds"),
    [("a100", (23.4, 145.4, 398)), ("h800", (18.2, 150.4, 364)), ("4090", (16.1, 127.4, 255))],
)
def test_latencies_are_found_in_published_curves(name: str, nanoseconds: tuple[float, ...]):
    found = [level.latency_s * 1e9 for level in levels(name)]
    assert found == pytest.approx(nanoseconds, rel=0.1)


@pytest.mark.parametrize("name", ["a100", "h800"])
def test_presets_hold_the_published_levels(name: str):
    found = levels(name)
    described = parse_place(f"sim:{name}").device.memories[:3]
    assert [m.name for m in described] == ["l1", "l2", "memory"]
    assert [m.latency_s for m in described] == pytest.approx([level.latency_s for level in found], rel=0.1)
    sizes = [level.bytes for level in found[:2]]
    assert [m.bytes for m in described[:2]] == pytest.approx(sizes, rel=0.2)
    reads = [m.read_bytes_per_s for m in described]
    assert reads == sorted(reads, reverse=True)
