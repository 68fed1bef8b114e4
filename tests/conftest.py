"""Checkpoints that many tests share, made once per session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """checkpoint(family, **config) -> folder of a tiny random model that transformers wrote."""
    pytest.importorskip("transformers")
    from lightwork.testing import tiny_checkpoint

    made: dict[str, Path] = {}

    def make(family: str = "llama", **config: object) -> Path:
        key = f"{family} {sorted(config.items())}"
        if key not in made:
            made[key] = tiny_checkpoint(tmp_path_factory.mktemp(family), family, **config)
        return made[key]

    return make
