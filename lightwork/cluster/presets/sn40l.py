"""SambaNova SN40L in nodes of eight sockets: SRAM on the chip, HBM beside it, DDR behind that."""

from __future__ import annotations

from lightwork.cluster.devices import Cluster, Device, Link, Memory, Unit

PEAK = 638e12
REACHED = 0.75
RATES = {
    "matmul/bfloat16": REACHED * PEAK,
    "attention/bfloat16": REACHED * PEAK,
    "vector/bfloat16": PEAK / 16,
    "vector/float32": PEAK / 16,
}
PAPER = (
    "published: 'SambaNova SN40L: Scaling the AI Memory Wall with Dataflow and Composition of Experts', 2024"
)
SOURCES = {
    "unit.count": f"{PAPER}: 1,040 compute units",
    "unit.rates": (
        f"{PAPER}: 638 TFLOP/s in bfloat16; assumed: 75 % of it in fused layers, attention included, and a "
        "sixteenth of it outside of matrix units"
    ),
    "unit.launch_s": "assumed: a kernel started by hardware, whose programme is loaded already",
    "unit.curve": "assumed: a pipeline is laid out for its rows, so few of them fill it as well",
    "unit.tile_rows": "assumed: rows stream one by one",
    "unit.fuses": f"{PAPER}: a decoder layer is one kernel",
    "step_s": "assumed: half a millisecond, as tokens are chosen on the device and one programme runs a step",
    "sram.bytes": f"{PAPER}: 520 MiB",
    "sram.read_bytes_per_s": f"{PAPER}: hundreds of TB/s; assumed: 200",
    "sram.write_bytes_per_s": "assumed: as reading",
    "sram.latency_s": "assumed: some tens of clocks",
    "memory.bytes": f"{PAPER}: 64 GiB of HBM",
    "memory.read_bytes_per_s": f"{PAPER}: about 2 TB/s, 85 % of which decoding reaches",
    "memory.write_bytes_per_s": "assumed: as reading",
    "memory.latency_s": "assumed: as other HBM",
    "host.bytes": f"{PAPER}: up to 1.5 TiB of DDR a socket",
    "host.read_bytes_per_s": f"{PAPER}: more than 1 TB/s from DDR to HBM in a node, an eighth a socket",
    "host.write_bytes_per_s": "assumed: as reading",
    "host.latency_s": "assumed: one start of a copy",
}
LINK_SOURCES = {
    "inner": "assumed: 200 GB/s a socket, and a microsecond: sockets exchange tiles without a host",
    "outer": "assumed: 200 Gbit/s per socket, as in GPU nodes of the time",
}


def _memory(name: str, size: float, bytes_per_s: float, latency_s: float) -> Memory:
    return Memory(
        name=name,
        bytes=size,
        read_bytes_per_s=bytes_per_s,
        write_bytes_per_s=bytes_per_s,
        latency_s=latency_s,
    )


def cluster(num_devices: int) -> Cluster:
    """Nodes of eight sockets."""
    unit = Unit(name="sn40l", count=1040, rates=RATES, launch_s=1e-6, fuses=True)
    memories = (
        _memory("sram", 520 << 20, 2e14, 3e-8),
        _memory("memory", 64 << 30, 0.85 * 2e12, 4e-7),
        _memory("host", 1.5 * (1 << 40), 1e12 / 8, 5e-6),
    )
    return Cluster(
        device=Device(name="sn40l", unit=unit, memories=memories, step_s=5e-4, sources=SOURCES),
        num_devices=num_devices,
        per_node=8,
        inner=Link(name="inner", a="device", b="device", bytes_per_s=2e11, latency_s=1e-6),
        outer=Link(name="outer", a="node", b="node", bytes_per_s=2.2e10, latency_s=15e-6),
        sources=LINK_SOURCES,
    )
