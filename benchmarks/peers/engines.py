"""What is compared: per engine its environment, its file for each weight type, its settings, its server.

The table to edit when lightwork gains a path for a weight type is LIGHTWORK_USE.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
WEIGHTS = ("f32", "bf16", "8bit", "4bit")

LIGHTWORK_USE: dict[str, tuple[str, ...]] = {
    "f32": (),
    "bf16": ("Quant(bits=16)",),
    "8bit": ("Quant(bits=8)",),
    "4bit": ("Quant(bits=4)",),
}

SPINS = 20_000
"""Turns of an OpenMP barrier before it sleeps. At 0 a sleep costs more than a small model's layer: llama.cpp
decoded 34M in 4 bits ten times slower. Without a bound a waiting engine would take a core from the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What a server is started with."""

    python: str
    model: Path
    weights: str
    port: int
    threads: int
    seqs: int
    kv_tokens: int
    max_len: int
    use: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """venv: folder of its environment; if optional, this benchmark's interpreter stands in. files: by weight
    type.

    server: its own OpenAI-compatible server as a command line, None if it has none. staggers: whether its
    script takes requests that come one by one.
    """

    name: str
    files: Mapping[str, str]
    venv: str = ""
    optional: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    server: Callable[[Serving], Sequence[str]] | None = None
    staggers: bool = False

    @property
    def script(self) -> Path:
        return HERE / f"run_{self.name}.py"

    def python(self, peers: Path) -> Path:
        own = peers / self.venv / "bin" / "python"
        return own if self.venv and (own.is_file() or not self.optional) else Path(sys.executable)

    def environment(self, threads: int, spins: int) -> dict[str, str]:
        """Settings that the engine must find when it is loaded."""
        counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "DO_NOT_TRACK": "1"}
        waits = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": str(spins), "KMP_BLOCKTIME": "0"}
        return {**counts, **quiet, **waits, "PYTHONPATH": "", **self.env}


def _serve_lightwork(s: Serving) -> Sequence[str]:
    use = [part for text in s.use for part in ("--use", text)]
    command = [s.python, "-m", "lightwork", "serve", f"hf:{s.model}", "--port", str(s.port)]
    return [*command, "--max-len", str(s.max_len), *use]


def _serve_transformers(s: Serving) -> Sequence[str]:
    options = {
        "host": "127.0.0.1",
        "port": s.port,
        "device": "cpu",
        "dtype": "float32" if s.weights == "f32" else "bfloat16",
        "cb-max-batch-tokens": 2048,
        "cb-block-size": 32,
        "cb-num-blocks": -(-s.kv_tokens // 32),
    }
    command = [
        s.python,
        "-m",
        "transformers.cli.transformers",
        "serve",
        str(s.model),
        "--continuous-batching",
    ]
    return [*command, *(f"--{name}={value}" for name, value in options.items())]


def _serve_llama(s: Serving) -> Sequence[str]:
    """llama.cpp's own server where the environment has one: the Python server takes one request at a time."""
    native = Path(s.python).parent / "llama-server"
    if native.is_file():
        size = ["-c", str(s.kv_tokens), "-np", str(s.seqs), "--kv-unified", "-t", str(s.threads)]
        return [str(native), "-m", str(s.model), "--port", str(s.port), *size]
    options = {
        "model": s.model,
        "port": s.port,
        "n_threads": s.threads,
        "n_threads_batch": s.threads,
        "n_ctx": s.max_len,
        "interrupt_requests": "false",
    }
    return [s.python, "-m", "llama_cpp.server", *(f"--{name}={value}" for name, value in options.items())]


def _serve_vllm(s: Serving) -> Sequence[str]:
    options = {
        "port": s.port,
        "host": "127.0.0.1",
        "dtype": "float32" if s.weights == "f32" else "bfloat16",
        "max-model-len": s.max_len,
        "max-num-seqs": s.seqs,
        "max-num-batched-tokens": 2048,
    }
    command = [
        s.python,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(s.model),
        "--enforce-eager",
    ]
    return [*command, "--no-enable-prefix-caching", *(f"--{name}={value}" for name, value in options.items())]


LIGHTWORK = Engine(
    name="lightwork",
    files=dict.fromkeys(WEIGHTS, "hf"),
    env={"PYTHONPATH": str(ROOT)},
    server=_serve_lightwork,
)
PEERS = {
    engine.name: engine
    for engine in (
        Engine(
            name="transformers",
            venv="transformers",
            optional=True,
            files={"f32": "hf", "bf16": "hf"},
            server=_serve_transformers,
        ),
        Engine(
            name="llama",
            venv="llama",
            files={"f32": "F32.gguf", "bf16": "BF16.gguf", "8bit": "Q8_0.gguf", "4bit": "Q4_0.gguf"},
            server=_serve_llama,
        ),
        Engine(
            name="openvino",
            venv="ov",
            files={
                f: f"openvino-{w}" for f, w in zip(WEIGHTS, ("fp32", "fp16", "int8", "int4"), strict=True)
            },
        ),
        Engine(
            name="vllm",
            venv="vllm",
            files={"f32": "hf", "bf16": "hf", "8bit": "hf-int8"},
            env={
                "VLLM_CPU_KVCACHE_SPACE": "1",
                "VLLM_CPU_OMP_THREADS_BIND": "auto",
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                "VLLM_NO_USAGE_STATS": "1",
            },
            server=_serve_vllm,
        ),
        Engine(
            name="ctranslate2",
            venv="ct2",
            files={"f32": "ctranslate2-float32", "8bit": "ctranslate2-int8_float32"},
            staggers=True,
        ),
    )
}
