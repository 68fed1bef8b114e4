"""The checkpoint in each engine's own format, made once by that engine's own tools."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from peers.engines import HERE, Engine
from peers.int8_checkpoint import write_int8

OPENVINO_4BIT = ("--ratio", "1.0", "--group-size", "128")


def prepared(engine: Engine, weights: str, folder: Path, peers: Path) -> Path:
    """The file or folder that the engine reads; converted from folder/hf if it is not there yet.

    Raises RuntimeError, with the end of what the converter printed, if the conversion fails.
    """
    target = folder / engine.files[weights]
    if target.exists():
        return target
    if engine.name == "vllm":
        write_int8(folder / "hf", target)
        return target
    command = _command(engine, target, folder / "hf", engine.python(peers))
    environment = {**os.environ, **engine.environment(os.cpu_count() or 1, 0)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode or not target.exists():
        shutil.rmtree(target, ignore_errors=True)
        target.unlink(missing_ok=True)
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-600:]}")
    return target


def _command(engine: Engine, target: Path, source: Path, python: Path) -> Sequence[str]:
    if engine.name == "llama":
        return [str(python), str(HERE / "export_gguf.py"), str(source), str(target), target.stem]
    width = target.name.partition("-")[2]
    if engine.name == "openvino":
        more = OPENVINO_4BIT if width == "int4" else ()
        task = ["--task", "text-generation-with-past", "--weight-format", width]
        command = [str(python), "-m", "optimum.commands.optimum_cli", "export", "openvino"]
        return [*command, "--model", str(source), *task, *more, str(target)]
    command = [str(python), "-m", "ctranslate2.converters.transformers", "--model", str(source)]
    return [*command, "--output_dir", str(target), "--quantization", width]
