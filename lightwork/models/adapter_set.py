"""The adapters that a model computes with, and the names that requests have for them.

A name stands for the newest version of its adapter. Requests hold the version that was newest when they came:
keys and values are found by it, so those of one version are never taken for those of another.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np

from lightwork.errors import CheckpointError, InvariantError
from lightwork.models.adapters import Adapter
from lightwork.models.parts import each_module
from lightwork.models.spec import ModelSpec

MAX_RANK = 512
P = TypeVar("P")


class AdapterSet(Collection[str], Generic[P]):
    """place: make of an adapter what the model computes with. variants: the newest version of each name.

    As a collection, all versions that are there, as `Request.model` has them. It is changed on the thread
    that submits requests; steps may run meanwhile.
    """

    def __init__(self, spec: ModelSpec, place: Callable[[Adapter], P]) -> None:
        self.variants: dict[str, str] = {}
        self._spec = spec
        self._place = place
        self._placed: dict[str, P] = {}

    def __contains__(self, version: object) -> bool:
        return version in self._placed

    def __iter__(self) -> Iterator[str]:
        return iter(self._placed)

    def __len__(self) -> int:
        return len(self._placed)

    def prepare(self, adapter: Adapter) -> P:
        """The slow part of a change, on any thread. Raises CheckpointError if it does not fit the model."""
        check_adapter(adapter, self._spec)
        return self._place(adapter)

    def publish(self, name: str, prepared: P, in_use: Container[str]) -> str:
        """Let the name stand for what was prepared; returns its version.

        Versions that are replaced go, but for those in use, and for the last: a request may be on its way
        with it.
        """
        before = self.variants.get(name)
        number = int(before.rpartition("@")[2]) + 1 if before is not None else 1
        version = f"{name}@{number}"
        self._placed[version] = prepared
        self.variants[name] = version
        kept = {*self.variants.values(), before}
        for old in [v for v in self._placed if v not in kept and v not in in_use]:
            del self._placed[old]
        return version

    def put(self, adapter: Adapter, in_use: Container[str] = ()) -> str:
        """Both. Raises CheckpointError, and then nothing changes."""
        return self.publish(adapter.name, self.prepare(adapter), in_use)

    def of(self, versions: Sequence[str]) -> list[P | None]:
        """What `place` made of each; None for "", and where there are no adapters: names are
        others' then.

        Raises InvariantError for one that is not there.
        """
        if not self._placed:
            return [None] * len(versions)
        for version in versions:
            if version and version not in self._placed:
                raise InvariantError(
                    f"a row is to be computed with {version!r}", expected=" or ".join(["no adapter", *self])
                )
        return [self._placed[version] if version else None for version in versions]


def check_adapter(adapter: Adapter, spec: ModelSpec) -> None:
    """Raises CheckpointError for an adapter that does not fit a model of this shape."""
    modules = {module.path: module for module in each_module(spec)}
    if not adapter.name or not adapter.deltas:
        raise CheckpointError(
            f"adapter {adapter.name!r} changes {len(adapter.deltas)} matrices",
            expected="a name, and a matrix or more",
        )
    for path, delta in adapter.deltas.items():
        module = modules.get(path)
        if module is None:
            raise CheckpointError(
                f"adapter {adapter.name!r} changes {path}",
                expected=f"matrices that all rows pass, such as {next(iter(modules))}; no experts",
                fix="use the model that it was made for",
            )
        rank = delta.rank
        if delta.a.shape != (rank, module.inputs) or delta.b.shape != (module.outputs, rank):
            raise CheckpointError(
                f"{path} of adapter {adapter.name!r} is of shapes {delta.a.shape} and {delta.b.shape}",
                expected=f"(rank, {module.inputs}) and ({module.outputs}, rank)",
                fix="use the model that it was made for",
            )
        if not 0 < rank <= MAX_RANK:
            raise CheckpointError(
                f"{path} of adapter {adapter.name!r} has rank {rank}", expected=f"1 to {MAX_RANK}"
            )
        if not (np.isfinite(delta.a).all() and np.isfinite(delta.b).all() and np.isfinite(delta.scale)):
            raise CheckpointError(
                f"{path} of adapter {adapter.name!r} is not finite", expected="numbers", fix="train it again"
            )
