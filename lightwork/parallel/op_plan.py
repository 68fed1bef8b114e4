"""A layer cut into nano-operations: which operator runs on which rows, where, and after what.

An operator gives a value of each of its rows and reads others, so what a plan must contain and what must wait
for what follows from the operators. `OpPlan` refuses a plan that lacks rows, misses a wait, or lets two
operators of one resource, or more than the whole device, run at once. A plan is of one layer and is carried
out again and again; a layer may begin before the one before it has ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Literal, NamedTuple

from lightwork.errors import RangeError, SpecError

Resource = Literal["compute", "memory", "network"]
HIDDEN = "hidden"
"""What a layer reads of the layer before, and gives."""
_LAYERS = 3
"""Layers looked at together: where lanes drift apart, one may meet the next but one."""
_ROUNDING = 1e-9


class Operator(NamedTuple):
    """resource: what bounds it. reads, gives: values, of its own rows. causal: it reads all rows up to its
    last."""

    name: str
    resource: Resource
    reads: tuple[str, ...]
    gives: str
    causal: bool = False


def layer_operators(tp: int = 1) -> tuple[Operator, ...]:
    """The operators of a transformer layer on one of tp ranks.

    Over several ranks the output projection has two forms. "out_parts" splits the sum over heads and is
    followed by an all-reduce; "out_columns" splits the columns, so heads are gathered before and columns
    after.
    """
    attended, mlp = ("attended", HIDDEN) if tp == 1 else ("parts", "mlp_parts")
    heads = ("decoded", "prefilled")
    whole = [
        Operator("qkv", "compute", (HIDDEN,), "qkv"),
        Operator("decode", "memory", ("qkv",), "decoded"),
        Operator("prefill", "compute", ("qkv",), "prefilled", causal=True),
        Operator("out_parts", "compute", heads, attended),
        Operator("up", "compute", ("attended",), "wide"),
        Operator("down", "compute", ("wide",), mlp),
    ]
    exchanges = [
        Operator("gather_heads", "network", heads, "heads"),
        Operator("out_columns", "compute", ("heads",), "columns"),
        Operator("gather_columns", "network", ("columns",), "attended"),
        Operator("reduce_out", "network", ("parts",), "attended"),
        Operator("reduce_down", "network", ("mlp_parts",), HIDDEN),
    ]
    return (*whole, *(exchanges if tp > 1 else ()))


class NanoOp(NamedTuple):
    """One operator on rows start to stop.

    share: of the device that it holds while it runs; what nobody holds goes to those bound by compute.
    lane: nano-operations of a lane run one after another, in the plan's order. after, behind: numbers of
    those of this layer, and of the layer before, that must have ended.
    """

    operator: str
    start: int
    stop: int
    share: float = 1.0
    lane: str = "all"
    after: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.operator} of rows {self.start} to {self.stop}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpPlan:
    """Nano-operations of one layer over `rows` rows; each comes after those it waits for.

    Raises SpecError or RangeError for a plan that would compute something else, or overlap what must not.
    """

    rows: int
    operators: tuple[Operator, ...]
    ops: tuple[NanoOp, ...]

    def __post_init__(self) -> None:
        _check(self)

    def operator(self, op: NanoOp) -> Operator:
        return next(o for o in self.operators if o.name == op.operator)

    @property
    def lanes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(op.lane for op in self.ops))

    @property
    def is_serial(self) -> bool:
        """Whether every operator takes all rows at once, one after another."""
        return len(self.lanes) == 1 and all((op.start, op.stop) == (0, self.rows) for op in self.ops)

    def fitted(self, rows: int) -> OpPlan:
        """The same for another number of rows: ranges end where they do, the last one, and what is left."""
        last = max(op.stop for op in self.ops)
        stops = [rows if op.stop == last else min(op.stop, rows) for op in self.ops]
        kept = [i for i, op in enumerate(self.ops) if op.start < stops[i]]
        number = {i: n for n, i in enumerate(kept)}

        def those(waits: Sequence[int]) -> tuple[int, ...]:
            return tuple(number[i] for i in waits if i in number)

        ops = (
            self.ops[i]._replace(
                stop=stops[i], after=those(self.ops[i].after), behind=those(self.ops[i].behind)
            )
            for i in kept
        )
        return OpPlan(rows=rows, operators=self.operators, ops=tuple(ops))


def serial_plan(rows: int, tp: int = 1, *, gather: bool = False) -> OpPlan:
    """Every operator once, on all rows. gather: with the output projection's columns split."""
    names = ["qkv", "decode", "prefill", *out_names(tp, gather), "up", "down"]
    names += ["reduce_down"] if tp > 1 else []
    ops = tuple(NanoOp(name, 0, rows) for name in names)
    return OpPlan(rows=rows, operators=layer_operators(tp), ops=ops)


def out_names(tp: int, gather: bool) -> list[str]:
    """The operators between attention and the MLP."""
    if tp == 1:
        return ["out_parts"]
    return ["gather_heads", "out_columns", "gather_columns"] if gather else ["out_parts", "reduce_out"]


def sources(plan_rows: Sequence[NanoOp], operators: Sequence[Operator], i: int) -> Iterator[tuple[int, str]]:
    """Who gives nano-operation i what it reads, and which value: of this layer, HIDDEN of the one before."""
    known = {o.name: o for o in operators}
    op = plan_rows[i]
    reader = known[op.operator]
    start = 0 if reader.causal else op.start
    for j, other in enumerate(plan_rows):
        given = known[other.operator].gives
        if given in reader.reads and other.start < op.stop and start < other.stop:
            yield j, given


# -- what a plan must hold


def _check(plan: OpPlan) -> None:
    known = {o.name for o in plan.operators}
    if plan.rows < 1 or not plan.ops:
        raise RangeError(f"a plan of {plan.rows} rows and {len(plan.ops)} nano-operations", expected="some")
    for i, op in enumerate(plan.ops):
        if op.operator not in known:
            raise SpecError(f"no operator is called {op.operator!r}", expected=", ".join(sorted(known)))
        if not 0 <= op.start < op.stop <= plan.rows:
            raise RangeError(f"{op}, where there are {plan.rows}", expected="a range of those rows")
        if not 0 < op.share <= 1:
            raise RangeError(f"{op} has a share of {op.share:g}", expected="above 0, at most 1")
        if any(not 0 <= j < i for j in op.after) or any(not 0 <= j < len(plan.ops) for j in op.behind):
            raise SpecError(
                f"{op}, number {i}, is after {op.after} and behind {op.behind}",
                expected="numbers of those that come before it, or of the layer before",
            )
    _check_rows(plan)
    _check_order(plan)


def _check_rows(plan: OpPlan) -> None:
    """Each value is given once per row, if somebody reads it."""
    given: dict[str, list[tuple[int, int]]] = {}
    for op in plan.ops:
        given.setdefault(plan.operator(op).gives, []).append((op.start, op.stop))
    for value, ranges in given.items():
        for (_, stop), (start, _) in pairwise(sorted(ranges)):
            if start < stop:
                raise SpecError(f"{value!r} of row {start} is computed twice", expected="once")
    wanted = [(HIDDEN, 0, plan.rows, "the layer's output")]
    for op in plan.ops:
        reader = plan.operator(op)
        wanted += [(value, 0 if reader.causal else op.start, op.stop, str(op)) for value in reader.reads]
    for value, start, stop, who in wanted:
        for first, last in sorted(given.get(value, [])):
            if first <= start < last:
                start = last
        if start < stop:
            raise SpecError(f"{value!r} of row {start} is missing for {who}", expected="every row it reads")


def _check_order(plan: OpPlan) -> None:
    n = len(plan.ops)
    ended = _ended_before(plan)
    late = (_LAYERS - 1) * n
    for i, op in enumerate(plan.ops):
        for j, value in sources(plan.ops, plan.operators, i):
            source = late - n + j if value == HIDDEN else late + j
            if not ended[late + i] >> source & 1:
                raise SpecError(
                    f"{op} reads {value!r} and does not wait for {plan.ops[j]}",
                    expected=f"{'behind' if value == HIDDEN else 'after'}=(..., {j})",
                )
    for group in _side_by_side(plan, ended):
        held = sum(op.share for op in group)
        if len({plan.operator(op).resource for op in group}) < len(group):
            raise SpecError(
                f"{group[0]} may run beside {group[-1]}, both bound by {plan.operator(group[0]).resource}",
                expected="one after the other: the same lane, or a wait",
            )
        if held > 1 + _ROUNDING:
            raise RangeError(
                f"{' and '.join(map(str, group))} may hold {held:g} of the device together",
                expected="at most 1",
            )


def _ended_before(plan: OpPlan) -> list[int]:
    """For each nano-operation of some layers, those that must have ended when it begins, as bits."""
    n = len(plan.ops)
    ended: list[int] = []
    last: dict[str, int] = {}
    for layer in range(_LAYERS):
        for i, op in enumerate(plan.ops):
            direct = [layer * n + j for j in op.after]
            if layer:
                direct += [(layer - 1) * n + j for j in op.behind]
            if op.lane in last:
                direct.append(last[op.lane])
            before = 0
            for j in direct:
                before |= ended[j] | 1 << j
            ended.append(before)
            last[op.lane] = layer * n + i
    return ended


def _side_by_side(plan: OpPlan, ended: Sequence[int]) -> Iterator[tuple[NanoOp, ...]]:
    """Pairs of nano-operations that nothing keeps apart, and triples of them."""
    n = len(plan.ops)
    beside: list[set[int]] = [set() for _ in ended]
    for a, b in combinations(range(len(ended)), 2):
        if not ended[b] >> a & 1:
            beside[a].add(b)
            yield plan.ops[a % n], plan.ops[b % n]
    for a, later in enumerate(beside):
        for b in later:
            for c in later & beside[b]:
                yield plan.ops[a % n], plan.ops[b % n], plan.ops[c % n]
