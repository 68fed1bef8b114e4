"""What many tests share, made once per session: checkpoints, and a home of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Of torch: steps of tiny models are shorter than waking another."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[None]:
    """No test writes to the user's home; processes that tests start do not either.

    Compiled code is kept between runs of the tests, by what it was compiled from.
    """
    home = tmp_path_factory.mktemp("home")
    cache: pytest.Cache | None = getattr(pytestconfig, "cache", None)
    if cache is not None:
        (home / "code").symlink_to(cache.mkdir("code"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIGHTWORK_HOME", str(home))
        yield
