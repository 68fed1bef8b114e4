"""What this machine's processor is called, and which instructions that matter here it has."""

from __future__ import annotations

import platform
from pathlib import Path

INSTRUCTIONS = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "avx_vnni",
    "amx_bf16",
    "amx_int8",
    "neon",
    "bf16",
)
CPUINFO = Path("/proc/cpuinfo")


def processor_name(cpuinfo: Path = CPUINFO) -> str:
    """As the system calls it. In a virtual machine that may name a family only: see `instructions`."""
    return _value("model name", cpuinfo) or platform.processor() or platform.machine()


def instructions(cpuinfo: Path = CPUINFO) -> tuple[str, ...]:
    """Those of INSTRUCTIONS that the processor has; none where the system does not say."""
    has = {"neon" if flag == "asimd" else flag for flag in features(cpuinfo)}
    return tuple(name for name in INSTRUCTIONS if name in has)


def features(cpuinfo: Path = CPUINFO) -> tuple[str, ...]:
    """All that the system says the processor has, by its names."""
    return tuple((_value("flags", cpuinfo) or _value("features", cpuinfo)).split())


def _value(label: str, cpuinfo: Path) -> str:
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip().lower() == label), "")
