"""One frozen description for every machine: CPUs, GPU nodes, and later PULP, PIM and dataflow chips.

Every constant has a source (measured, published, or assumed) under its field's name in `sources`; a test
refuses a preset that lacks one. Rates are what well-made kernels reach at saturating sizes, not datasheet
peaks; `curve` says what share of that smaller sizes reach.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from math import log10
from typing import TYPE_CHECKING, Any, NamedTuple

from lightwork.errors import SpecError
from lightwork.shown import Table, bars_svg, readable

if TYPE_CHECKING:
    from rich.console import Group

Curve = tuple[tuple[float, float], ...]
"""(x, y), x ascending; straight lines in between, flat outside. Of a unit: (rows, share of its rate)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Identical compute units, used together. rates: operations per second of all of them, by "kind/dtype".

    launch_s: time to start one kernel. tile_rows: rows are computed in multiples of this; 1: no tiles.
    curves: by "kind/dtype", where a measured one differs from `curve`. fuses: a layer is laid out in space as
    one kernel, through which rows stream: what passes between its operations does not leave the chip.
    reads_once: attention reads the keys that sequences of a step share for all of them together.
    """

    name: str
    count: int
    rates: Mapping[str, float]
    launch_s: float = 0.0
    curve: Curve = ((1, 1.0),)
    tile_rows: int = 1
    curves: Mapping[str, Curve] = field(default_factory=dict)
    fuses: bool = False
    reads_once: bool = False

    def rate(self, kind: str, dtype: str) -> float:
        """Saturated operations per second. Raises SpecError if this unit cannot do it."""
        found = self.rates.get(f"{kind}/{dtype}") or self.rates.get(f"matmul/{dtype}")
        if found is None:
            raise SpecError(f"{self.name} has no rate for {kind}/{dtype}", expected=", ".join(self.rates))
        return found

    def share(self, rows: int, kind: str = "matmul", dtype: str = "") -> float:
        """Share of the saturated rate that `rows` rows reach, tiles included; 0 rows means saturated."""
        if rows <= 0:
            return 1.0
        computed = -(-rows // self.tile_rows) * self.tile_rows if rows >= self.tile_rows else rows
        return interpolate(self.curves.get(f"{kind}/{dtype}", self.curve), computed) * rows / computed


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """One level of memory. read_bytes_per_s: what streaming kernels reach. bytes: capacity."""

    name: str
    bytes: float
    read_bytes_per_s: float
    write_bytes_per_s: float
    latency_s: float


class Protocol(NamedTuple):
    """One way in which a ring of devices exchanges: seconds to start, seconds a hop, share of the
    bandwidth that is payload."""

    start_s: float
    hop_s: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A connection. bytes_per_s: per direction and device. a, b: what it joins ("device", "node", "host").

    protocols: of its rings, of which each exchange takes the fastest; none: a hop takes the latency.
    """

    name: str
    a: str
    b: str
    bytes_per_s: float
    latency_s: float
    duplex: bool = True
    protocols: tuple[Protocol, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator or processor. memories: inner to outer; "memory" is its main one.

    step_s: host time that every engine step costs on top of its kernels. sharing: (share of the units, speed
    over its speed alone) of kernels bound by "memory" or "network" that run beside a matrix product, which
    keeps the rest; none: as the share. sources: by field, e.g. "unit.rates".
    """

    name: str
    unit: Unit
    memories: tuple[Memory, ...]
    step_s: float = 0.0
    sharing: Mapping[str, Curve] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    def level(self, footprint_bytes: float) -> str:
        """The innermost memory that holds this many bytes; the main one if none does."""
        fits = (m.name for m in self.memories if m.bytes >= footprint_bytes)
        return next(fits, "memory")

    def memory(self, name: str = "memory") -> Memory:
        """A level by name. Raises SpecError."""
        for level in self.memories:
            if level.name == name:
                return level
        raise SpecError(
            f"{self.name} has no memory {name!r}", expected=", ".join(m.name for m in self.memories)
        )

    def table(self) -> Table:
        """Its memories, inner to outer, and the rates of its units; bars are logarithmic."""
        sizes = [(m, readable(m.bytes, "B"), readable(m.read_bytes_per_s, "B/s")) for m in self.memories]
        rates = [(name, "", readable(rate, "op/s")) for name, rate in self.unit.rates.items()]
        most = log10(max(m.bytes for m in self.memories))
        return Table(
            title=f"{self.name}: {self.unit.count} {self.unit.name}",
            columns=("", "holds", "does"),
            rows=(*((m.name, size, rate) for m, size, rate in sizes), *rates),
            svg=bars_svg((m.name, log10(m.bytes) / most, f"{size}, {rate}") for m, size, rate in sizes),
        )

    def __rich__(self) -> Group:
        return self.table().__rich__()

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def constants(self) -> list[str]:
        """The names that `sources` must hold."""
        names = [f"unit.{n}" for n in ("count", "rates", "launch_s", "curve", "tile_rows")] + ["step_s"]
        names += ["unit.curves"] if self.unit.curves else []
        names += [f"unit.{name}" for name in ("fuses", "reads_once") if getattr(self.unit, name)]
        names += [f"sharing.{resource}" for resource in self.sharing]
        for level in self.memories:
            names += [f"{level.name}.{f.name}" for f in fields(level) if f.name != "name"]
        return names


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """num_devices of one device, per_node to a node. inner joins those of a node, outer joins nodes."""

    device: Device
    num_devices: int = 1
    per_node: int = 1
    inner: Link | None = None
    outer: Link | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    def link(self, a: int, b: int) -> Link:
        """The slowest link between two devices. Raises SpecError if they are not connected."""
        link = self.inner if a // self.per_node == b // self.per_node else self.outer
        if link is None:
            raise SpecError(f"devices {a} and {b} of {self.device.name} are not connected", expected="a link")
        return link

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Cluster:
        """The inverse of to_dict, also of what JSON made of it. Raises SpecError."""
        try:
            device = dict(data["device"])
            unit = dict(device["unit"])
            unit["curve"] = _curve(unit["curve"])
            unit["curves"] = {name: _curve(points) for name, points in unit.get("curves", {}).items()}
            device["unit"] = Unit(**unit)
            device["memories"] = tuple(Memory(**m) for m in device["memories"])
            device["sharing"] = {name: _curve(points) for name, points in device.get("sharing", {}).items()}
            inner, outer = (_link(data[k]) if data.get(k) else None for k in ("inner", "outer"))
            return cls(
                device=Device(**device),
                num_devices=int(data["num_devices"]),
                per_node=int(data["per_node"]),
                inner=inner,
                outer=outer,
                sources=dict(data["sources"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise SpecError(
                f"this is not a machine description: {error!r}", expected="what to_dict gives"
            ) from error


def _link(data: Mapping[str, Any]) -> Link:
    protocols = tuple(Protocol(*values) for values in data.get("protocols", ()))
    return Link(**{**data, "protocols": protocols})


def _curve(points: Sequence[Sequence[float]]) -> Curve:
    return tuple((x, float(y)) for x, y in points)


def interpolate(curve: Curve, x: float) -> float:
    """Value of a piecewise linear curve, flat outside its ends."""
    i = bisect_left(curve, (x,))
    if i == 0:
        return curve[0][1]
    if i == len(curve):
        return curve[-1][1]
    (x0, y0), (x1, y1) = curve[i - 1], curve[i]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
