"""The processor's name and instructions, from what different systems write."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightwork.cluster.processor import INSTRUCTIONS, instructions, processor_name

X86 = """processor\t: 0
model\t\t: 207
model name\t: Some Xeon: Processor
flags\t\t: fpu sse2 avx2 avx512f avx512_vnni amx_int8 amx_tile

processor\t: 1
model name\t: Another
flags\t\t: fpu
"""
ARM = """processor\t: 0
Features\t: fp asimd asimdhp bf16
CPU implementer\t: 0x41
"""


@pytest.fixture
def cpuinfo(tmp_path: Path) -> Path:
    return tmp_path / "cpuinfo"


def test_an_x86_processor_names_itself_and_its_instructions(cpuinfo: Path):
    cpuinfo.write_text(X86)
    assert processor_name(cpuinfo) == "Some Xeon: Processor"
    assert instructions(cpuinfo) == ("avx2", "avx512f", "avx512_vnni", "amx_int8")


def test_an_arm_processor_has_neon(cpuinfo: Path):
    cpuinfo.write_text(ARM)
    assert processor_name(cpuinfo)
    assert instructions(cpuinfo) == ("neon", "bf16")


def test_where_the_system_says_nothing_no_instruction_is_claimed(cpuinfo: Path):
    assert instructions(cpuinfo) == ()
    assert processor_name(cpuinfo)


def test_this_machine_is_described():
    assert processor_name()
    assert set(instructions()) <= set(INSTRUCTIONS)
