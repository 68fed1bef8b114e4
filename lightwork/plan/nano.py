"""Nano-operations for a layer: which ranges, in what order, on which shares of the device.

Two stages, as in NanoFlow (2024). The first is a mixed-integer program over the sizes of the ranges and the
order of the operators that share a resource, as if kernels side by side did not disturb one another; layers
follow one another at a period, which is what is minimised. Ranges are cut further as long as that pays. The
second gives kernels bound by memory or network their shares: one at a time is changed to the next level as
long as the plan, carried out on a simulated device with measured interference, gets faster. (The publication
solves a second program here; this one needs none, and what it minimises is what the simulator will say.) If
nothing beats one operator after another, that is the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, combinations_with_replacement, product
from math import inf
from typing import Any, NamedTuple

import numpy as np

from lightwork.cluster.devices import Curve
from lightwork.errors import InvariantError, MissingExtraError, RangeError
from lightwork.parallel.op_plan import (
    HIDDEN,
    NanoOp,
    Operator,
    OpPlan,
    layer_operators,
    out_names,
    serial_plan,
    sources,
)
from lightwork.parallel.overlap import Seconds, seconds_of

UNIT = 128
"""Ranges are multiples of so many rows: the tiles of matrix products."""
CUTS: tuple[tuple[int, ...], ...] = ((1, 1), (2, 2))
"""Ranges, and in how many each is cut for attention and the projection before it; tried in this order. Three
ranges were no faster on the published table, and take a minute."""
WORTH = 0.01
"""Overlap, or more ranges, must gain so much."""
GAP = 0.01
"""A program is solved to this share of its best."""
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
FIRST = {"memory": 0.4, "network": 0.2}
"""Shares that the second stage starts from, or the levels next to them."""
LEAST_COMPUTE = 0.1
HORIZON = 4.0
"""Of the first stage: layers one after another take one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The best plan, what it takes, and what one operator after another does. tried: plans, with seconds."""

    plan: OpPlan
    seconds: float
    serial_s: float
    tried: tuple[tuple[OpPlan, float], ...] = ()

    @property
    def gain(self) -> float:
        return self.serial_s / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """What is to be carried out: num_layers layers on `rows` rows. alone: see `Seconds`. sharing: speed of
    kernels on a share of the device, by resource. levels: shares that kernels bound by memory or network may
    have."""

    rows: int
    num_layers: int
    alone: Seconds
    sharing: Mapping[str, Curve] = field(default_factory=dict)
    tp: int = 1
    levels: tuple[float, ...] = LEVELS

    def seconds(self, plan: OpPlan) -> float:
        return seconds_of(plan, self.num_layers, self.alone, self.sharing)


def search(layers: Layers) -> Found:
    """The fastest plan found. Raises RangeError for no rows, MissingExtraError without scipy."""
    if layers.rows < 1 or layers.num_layers < 1:
        raise RangeError(f"{layers.num_layers} layers of {layers.rows} rows", expected="at least 1 of both")
    serial = [serial_plan(layers.rows, layers.tp, gather=gather) for gather in (False, True)[: layers.tp]]
    serial_s, plan = min(((layers.seconds(p), p) for p in serial), key=lambda found: found[0])
    best_s, tried = serial_s, []
    for cut in CUTS:
        before_s = best_s
        for skeleton in _skeletons(cut, layers):
            shared = _share(_arrange(skeleton, layers), layers)
            seconds = layers.seconds(shared)
            tried.append((shared, seconds))
            if seconds < min(best_s, (1 - WORTH) * serial_s):
                best_s, plan = seconds, shared
        if best_s > (1 - WORTH) * before_s:
            break
    return Found(plan=plan, seconds=best_s, serial_s=serial_s, tried=tuple(tried))


def _skeletons(cut: Sequence[int], layers: Layers) -> Iterator[list[NanoOp]]:
    """Nano-operations whose rows are numbers of ranges, for each way to split the output projections.

    Ranges whose heads are gathered come first: their exchange is the earliest there can be.
    """
    num = sum(cut)
    if num > layers.rows // UNIT or layers.rows % UNIT:
        return
    starts = [sum(cut[:i]) for i in range(len(cut) + 1)]
    for gathers in combinations_with_replacement((True, False)[-layers.tp :], len(cut)):
        ops = [NanoOp(name, i, i + 1) for i in range(num) for name in ("qkv", "decode", "prefill")]
        for gather, start, stop in zip(gathers, starts, starts[1:], strict=False):
            names = [*out_names(layers.tp, gather), "up", "down", *["reduce_down"][: layers.tp - 1]]
            ops += [NanoOp(name, start, stop) for name in names]
        yield ops


# -- first stage: sizes and order


class _Program:
    """A mixed-integer program, put together row by row. A term is (variable, factor)."""

    def __init__(self) -> None:
        self._most: list[float] = []
        self._whole: list[int] = []
        self._rows: list[tuple[list[tuple[int, float]], float, float]] = []

    def variable(self, most: float = inf, *, whole: bool = False) -> int:
        self._most.append(most)
        self._whole.append(whole)
        return len(self._most) - 1

    def at_least(self, terms: list[tuple[int, float]], value: float, most: float = inf) -> None:
        self._rows.append((terms, value, most))

    def least(self, variable: int) -> Any:
        """Values of all variables where one of them is smallest."""
        optimize, sparse = _scipy()
        where = [(i, j, x) for i, (terms, _, _) in enumerate(self._rows) for j, x in terms]
        rows, columns, factors = zip(*where, strict=True)
        matrix = sparse.csr_array((factors, (rows, columns)), shape=(len(self._rows), len(self._most)))
        found = optimize.milp(
            np.eye(len(self._most))[variable],
            integrality=np.array(self._whole),
            bounds=optimize.Bounds(0, self._most),
            constraints=optimize.LinearConstraint(
                matrix, [low for _, low, _ in self._rows], [high for _, _, high in self._rows]
            ),
            options={"mip_rel_gap": GAP},
        )
        if found.x is None:
            raise InvariantError(
                f"no arrangement was found: {found.message}", expected="the serial one at least"
            )
        return found.x


def _scipy() -> tuple[Any, Any]:
    try:
        from scipy import optimize, sparse
    except ModuleNotFoundError as error:
        raise MissingExtraError("scipy", "plan") from error
    return optimize, sparse


class _Line(NamedTuple):
    """Seconds of a nano-operation by its number of units: fixed + per_unit * units."""

    fixed: float
    per_unit: float


def _line(operator: str, layers: Layers) -> _Line:
    whole = layers.rows // UNIT
    few = max(1, whole // 4)
    few_s, whole_s = (layers.alone(operator, n * UNIT) for n in (few, whole))
    per_unit = (whole_s - few_s) / max(1, whole - few)
    return _Line(max(0.0, whole_s - per_unit * whole), per_unit)


@dataclass(slots=True)
class _Stage:
    """The first stage's program. Times are in units of scale_s, so that tolerances mean something."""

    ops: Sequence[NanoOp]
    operators: Sequence[Operator]
    lines: Sequence[_Line]
    scale_s: float
    program: _Program = field(default_factory=_Program)
    period: int = field(init=False)
    starts: list[int] = field(init=False)
    sizes: list[int] = field(init=False)

    def __post_init__(self) -> None:
        new = self.program.variable
        self.period = new()
        self.starts = [new() for _ in self.ops]
        self.sizes = [new(whole=True) for _ in range(max(op.stop for op in self.ops))]

    def after(self, j: int, i: int, periods: int = 0, unless: tuple[int, float] | None = None) -> None:
        """Nano-operation j, of a layer so many later, begins when i has ended. unless: a term that, at its
        horizon, makes this say nothing."""
        line = self.lines[i]
        sizes = self.sizes[self.ops[i].start : self.ops[i].stop]
        terms = [(self.starts[j], 1.0), (self.starts[i], -1.0)]
        terms += [(size, -line.per_unit / self.scale_s) for size in sizes]
        terms += [(self.period, float(periods))] if periods else []
        value = line.fixed / self.scale_s
        if unless is not None:
            terms.append((unless[0], unless[1] * HORIZON))
            value -= HORIZON if unless[1] < 0 else 0.0
        self.program.at_least(terms, value)

    def one_at_a_time(self, i: int, j: int, known: Sequence[int]) -> None:
        """Two nano-operations of one resource, in either order, also with those of the layers beside.

        known: bits of those before each. Those of one operator keep the order of their rows.
        """
        self.after(j, i, 1)
        self.after(i, j, 1)
        if known[j] >> i & 1 or self.ops[i].operator == self.ops[j].operator:
            self.after(j, i)
        elif known[i] >> j & 1:
            self.after(i, j)
        else:
            first = self.program.variable(1, whole=True)
            self.after(j, i, unless=(first, -1.0))
            self.after(i, j, unless=(first, 1.0))


def _arrange(ops: Sequence[NanoOp], layers: Layers) -> OpPlan:
    """Sizes and order at the shortest period, and the plan they make, with first shares."""
    operators = layer_operators(layers.tp)
    lines = [_line(op.operator, layers) for op in ops]
    scale_s = sum(_line(o, layers).per_unit for o in {op.operator for op in ops}) * (layers.rows // UNIT)
    scale_s += sum(line.fixed for line in lines)
    stage = _Stage(ops, operators, lines, scale_s)
    program = stage.program
    for size in stage.sizes:
        program.at_least([(size, 1.0)], 1.0)
    whole = layers.rows // UNIT
    program.at_least([(size, 1.0) for size in stage.sizes], whole, whole)
    known = [0] * len(ops)
    for j in range(len(ops)):
        for i, value in sources(ops, operators, j):
            stage.after(j, i, int(value == HIDDEN))
            if value != HIDDEN:
                known[j] |= known[i] | 1 << i
    resource = {o.name: o.resource for o in operators}
    for i, j in combinations(range(len(ops)), 2):
        if resource[ops[i].operator] == resource[ops[j].operator]:
            stage.one_at_a_time(i, j, known)
    x = program.least(stage.period)
    ends = np.rint(np.cumsum(x[stage.sizes])).astype(int) * UNIT
    rows = [0, *ends.tolist()]
    order = sorted(range(len(ops)), key=lambda i: (round(x[stage.starts[i]], 9), i))
    return _plan([ops[i]._replace(start=rows[ops[i].start], stop=rows[ops[i].stop]) for i in order], layers)


def _plan(ordered: Sequence[NanoOp], layers: Layers) -> OpPlan:
    """Lanes by resource, with the waits that values need, on first shares."""
    operators = layer_operators(layers.tp)
    resource = {o.name: o.resource for o in operators}
    lanes = [op._replace(lane=resource[op.operator]) for op in ordered]
    made = []
    for i, op in enumerate(lanes):
        found = [*sources(lanes, operators, i)]
        made.append(
            op._replace(
                share=FIRST.get(op.lane, 1 - sum(FIRST.values())),
                after=tuple(j for j, value in found if value != HIDDEN and lanes[j].lane != op.lane),
                behind=tuple(j for j, value in found if value == HIDDEN and lanes[j].lane != op.lane),
            )
        )
    return OpPlan(rows=layers.rows, operators=operators, ops=tuple(made))


# -- second stage: shares


def _share(plan: OpPlan, layers: Layers) -> OpPlan:
    """Shares, changed one at a time by one level as long as that makes the plan faster."""
    shares = layers.levels
    levels = {
        i: min(range(len(shares)), key=lambda n: abs(shares[n] - FIRST[op.lane]))
        for i, op in enumerate(plan.ops)
        if op.lane in FIRST
    }
    best = _on_shares(plan, levels, shares) or plan
    best_s, changed = layers.seconds(best), True
    while changed:
        changed = False
        for i, step in product(levels, (-1, 1)):
            trial = levels | {i: levels[i] + step}
            other = _on_shares(plan, trial, shares)
            seconds = layers.seconds(other) if other is not None else inf
            if other is not None and seconds < best_s * (1 - 1e-6):
                levels, best, best_s, changed = trial, other, seconds, True
    return best


def _on_shares(plan: OpPlan, levels: Mapping[int, int], shares: Sequence[float]) -> OpPlan | None:
    """The plan on other shares, those bound by compute being sure of what is left; None if that is little."""
    if not all(0 <= level < len(shares) for level in levels.values()):
        return None
    most: dict[str, float] = {}
    for i, level in levels.items():
        most[plan.ops[i].lane] = max(most.get(plan.ops[i].lane, 0.0), shares[level])
    rest = round(1 - sum(most.values()), 6)
    if rest < LEAST_COMPUTE:
        return None
    ops = (op._replace(share=shares[levels[i]] if i in levels else rest) for i, op in enumerate(plan.ops))
    return replace(plan, ops=tuple(ops))
