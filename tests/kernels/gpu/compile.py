"""Compile every kernel to machine code for one compute capability, as the served types and shapes need it:

    python compile.py 90

Needs no GPU. Prints each kernel's shared memory; fails if one does not compile or asks for more than there
is, and if attention spills registers, multiplies without the matrix units or does not copy keys ahead.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lightwork.kernels.gpu import attention, fused, pick
from lightwork.kernels.gpu.tasks import FOLD_FIELDS, TASK_FIELDS, TILES

HEAD = {"SHARE": 4, "SIZE": 128, "PADDED": 128}
MAX_SHARED = {80: 163 * 1024, 90: 227 * 1024}


def partials(lanes: int, windowed: bool) -> dict[str, Any]:
    return {
        **dict.fromkeys(("q", "keys", "values"), "*bf16"),
        **dict.fromkeys(("tasks", "num_tasks", "tables", "index", "positions"), "*i32"),
        "ancestors": "*i64",
        **dict.fromkeys(("sums", "outputs"), "*fp32"),
        "q_stride": "i32",
        "scale": "fp32",
        "window": "i32",
        **HEAD,
        "KV_HEADS": 8,
        "LANES": lanes,
        "KEYS": 64,
        "BLOCK": 16,
        "WORKERS": 132,
        "WINDOWED": windowed,
        "FIELDS": TASK_FIELDS,
        "num_warps": 8 if lanes > 64 else 4,
    }


KERNELS: list[tuple[Any, dict[str, Any]]] = [
    *((attention._partials, partials(tile.lanes, windowed)) for tile in TILES for windowed in (False, True)),
    (
        attention._fold,
        {"sums": "*fp32", "outputs": "*fp32", "folds": "*i32", "out": "*bf16", **HEAD}
        | {"FOLDED": 16, "FIELDS": FOLD_FIELDS},
    ),
    (
        fused._rms_norm,
        dict.fromkeys(("x", "add", "weight", "out"), "*bf16")
        | {"eps": "fp32", "ADD": True, "HIDDEN": 4096, "BLOCK": 4096, "num_warps": 8},
    ),
    *(
        (
            fused._rotate_and_store,
            dict.fromkeys(("qkv", "cos", "sin", "keys", "values", "q_norm", "k_norm"), "*bf16")
            | {"slots": "*i32", "eps": "fp32", "NORMED": normed, "QUERIES": 32, "KV_HEADS": 8, "HALF": 64}
            | {"HEADS": 64, "PADDED": 64},
        )
        for normed in (False, True)
    ),
    (fused._gated, {"up": "*bf16", "out": "*bf16", "width": "i32", "BLOCK": fused.COLUMNS}),
    (
        pick._best_of_block,
        {"logits": "*fp32", "seeds": "*i64", "positions": "*i32", "temperatures": "*fp64"}
        | {"scores": "*fp64", "ids": "*i32", "vocab": "i32", "stride": "i32", "BLOCK": pick.BLOCK},
    ),
    (pick._best, {"scores": "*fp64", "ids": "*i32", "out": "*i32", "blocks": "i32", "BLOCKS": 128}),
]


def compiled(kernel: Any, arguments: dict[str, Any], capability: int) -> Any:
    """arguments: the type of each run-time argument as text, the value of each constant, and num_warps."""
    signature = {n: arguments[n] if isinstance(arguments[n], str) else "constexpr" for n in kernel.arg_names}
    constants = {n: arguments[n] for n, kind in signature.items() if kind == "constexpr"}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, n in enumerate(kernel.arg_names)
        if signature[n].startswith("*") or n in ("q_stride", "width")
    }
    options = {"num_warps": arguments.get("num_warps", 4), "enable_fp_fusion": True}
    source = ASTSource(kernel, signature, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def local_bytes(cubin: bytes) -> int:
    """Bytes of a thread's stack, where spilled registers are."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    found = re.search(r"STACK:(\d+)", done.stdout)
    assert found, done.stdout + done.stderr
    return int(found[1])


def main(capability: int) -> None:
    for kernel, arguments in KERNELS:
        code = compiled(kernel, arguments, capability)
        ptx = code.asm["ptx"]
        print(f"{kernel.__name__} {arguments.get('LANES', '')}: {code.metadata.shared} bytes shared")
        assert code.metadata.shared <= MAX_SHARED[capability]
        assert len(code.asm["cubin"]) > 0
        if kernel is attention._partials:
            assert re.search(r"wgmma\.mma_async|mma\.sync", ptx), "no matrix units"
            assert "cp.async" in ptx, "keys are not copied ahead"
            assert local_bytes(code.asm["cubin"]) == 0, "registers are spilled"


if __name__ == "__main__":
    main(int(sys.argv[1]))
