"""A small region as one function of loops: nothing but its arithmetic is left, no call per operation.

Of a network of a few thousand multiplications, calling torch's operations is most of the time. The region's
operations (ATen's, as make_fx lists them for one set of shapes) are written as loops over flat arrays, which
numba compiles. Changes of shape cost nothing: they are other strides of the same array.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, TypeAlias

import numba
import numpy as np
import torch
from torch._decomp import core_aten_decompositions
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.shape_prop import ShapeProp

from lightwork.compile.backends import Backend, Code, Function, Traced

MOST_WORK = 1 << 15
"""Elements computed, by all operations, above which torch's kernels are worth their calls."""

DTYPES = {
    torch.float32: "np.float32",
    torch.float64: "np.float64",
    torch.int64: "np.int64",
    torch.int32: "np.int32",
    torch.bool: "np.bool_",
}
POINTWISE = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "neg": "-{0}",
    "abs": "abs({0})",
    "exp": "math.exp({0})",
    "log": "math.log({0})",
    "sqrt": "math.sqrt({0})",
    "tanh": "math.tanh({0})",
    "sigmoid": "1 / (1 + math.exp(-{0}))",
    "rsqrt": "1 / math.sqrt({0})",
    "relu": "(0 if {0} < 0 else {0})",
    "maximum": "np.maximum({0}, {1})",
    "minimum": "np.minimum({0}, {1})",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "eq": "{0} == {1}",
    "ne": "{0} != {1}",
    "logical_and": "bool({0}) and bool({1})",
    "logical_or": "bool({0}) or bool({1})",
    "logical_not": "not {0}",
    "_to_copy": "{0}",
    "clone": "{0}",
}
REDUCTIONS = {
    "sum": ("0", "acc + x", "acc"),
    "mean": ("0", "acc + x", "acc / {n}"),
    "linalg_vector_norm": ("0", "acc + x * x", "math.sqrt(acc)"),
    "amax": ("-np.inf", "np.maximum(acc, x)", "acc"),
    "amin": ("np.inf", "np.minimum(acc, x)", "acc"),
}
WHOLE = {"max": "amax", "min": "amin"}
"""Over all elements, under another name."""

IGNORED = {"dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking"}

Shape: TypeAlias = tuple[int, ...]


class UnsupportedError(Exception):
    """An operation or a type that is not written as loops: another compiler takes the region."""


@dataclass(frozen=True, slots=True)
class View:
    """Elements of a flat array. base: its variable, or of a number where shape is ()."""

    base: str
    shape: Shape
    strides: Shape
    dtype: torch.dtype
    offset: int = 0
    number: bool = False

    def at(self, indices: Sequence[str]) -> str:
        if self.number:
            return self.base
        terms = [f"{i} * {s}" for i, s in zip(indices, self.strides, strict=True) if s]
        return f"{self.base}[{' + '.join([*terms, str(self.offset)])}]"

    def expanded(self, shape: Shape) -> View:
        """Broadcast to a shape: new and repeated dimensions have stride 0."""
        missing = len(shape) - len(self.shape)
        pairs = zip(self.shape, shape[missing:], self.strides, strict=True)
        strides = tuple(0 if n == 1 and m != 1 else s for n, m, s in pairs)
        return replace(self, shape=shape, strides=(0,) * missing + strides)


def contiguous(shape: Shape) -> Shape:
    """Strides, in elements."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


@dataclass(frozen=True, slots=True)
class Loops:
    """Small regions as loops, compiled by numba; others as another backend compiles them."""

    otherwise: Backend = field(default_factory=Traced)

    def compile(self, region: Code, example: Sequence[torch.Tensor]) -> Function:
        """Raises what the other backend raises for regions that are not small or not known here."""
        if any(t.device.type != "cpu" for t in (*example, *region.parameters())):
            return self.otherwise.compile(region, example)
        try:
            graph = make_fx(region.forward, _decompositions())(*example)
            written = _Writer(graph, example)
        except (UnsupportedError, RuntimeError):
            return self.otherwise.compile(region, example)
        kernel, weights = _compiled(written.source), written.weights

        def run(*tensors: torch.Tensor) -> tuple[Any, ...]:
            results = kernel(*[t.contiguous().numpy() for t in tensors], *weights)
            return tuple([torch.from_numpy(r) for r in results])

        run(*example)
        return run


@cache
def _decompositions() -> dict[Any, Any]:
    return dict(core_aten_decompositions())


@cache
def _compiled(source: str) -> Callable[..., tuple[Any, ...]]:
    space: dict[str, Any] = {"np": np, "math": math}
    exec(compile(source, "<loops>", "exec"), space)
    kernel: Callable[..., tuple[Any, ...]] = numba.njit(fastmath={"reassoc", "contract"})(space["kernel"])
    return kernel


class _Writer:
    """The source of one graph, and the weights that it takes after its inputs."""

    def __init__(self, graph: GraphModule, example: Sequence[torch.Tensor]) -> None:
        ShapeProp(graph).propagate(*example)
        self.graph, self.lines, self.work = graph, list[str](), 0
        self.weights: list[np.ndarray[Any, Any]] = []
        self.views: dict[Node, View] = {}
        self.owned: set[str] = set()
        self.names = 0
        arguments: list[str] = []
        for node in graph.graph.nodes:
            if node.op in ("placeholder", "get_attr"):
                arguments.append(self.argument(node))
            elif node.op == "call_function":
                self.views[node] = self.operation(node)
            elif node.op == "output":
                self.output(node.args[0])
            if self.work > MOST_WORK:
                raise UnsupportedError("too large")
        placed = [a for a in arguments if a.startswith("x")] + [a for a in arguments if a.startswith("w")]
        self.source = "\n".join([f"def kernel({', '.join(placed)}):", *(f"    {s}" for s in self.lines), ""])

    def line(self, depth: int, text: str) -> None:
        self.lines.append("    " * depth + text)

    def fresh(self) -> str:
        self.names += 1
        return f"v{self.names}"

    def argument(self, node: Node) -> str:
        """An input, or a weight: flat inside."""
        shape, dtype = _form(node)
        weight = node.op == "get_attr"
        name = f"{'w' if weight else 'x'}{len(self.views)}"
        if weight:
            tensor = getattr(self.graph, str(node.target)).detach()
            self.weights.append(tensor.contiguous().numpy())
        self.line(0, f"{name} = {name}.ravel()")
        self.views[node] = View(name, shape, contiguous(shape), dtype)
        return name

    def array(self, shape: Shape, dtype: torch.dtype) -> View:
        name = self.fresh()
        self.owned.add(name)
        self.line(0, f"{name} = np.empty({math.prod(shape)}, {DTYPES[dtype]})")
        return View(name, shape, contiguous(shape), dtype)

    def loops(self, shape: Shape, depth: int = 0, first: int = 0) -> list[str]:
        """Open a loop for each dimension. Their variables are numbered from `first`."""
        indices = [f"i{first + d}" for d in range(len(shape))]
        for d, (index, n) in enumerate(zip(indices, shape, strict=True)):
            self.line(depth + d, f"for {index} in range({n}):")
        return indices

    def operation(self, node: Node) -> View:
        name = str(node.target).split(".")[1]
        if set(node.kwargs) - IGNORED:
            raise UnsupportedError(str(node.target))
        if viewed := self.viewed(name, node):
            return viewed
        shape, dtype = _form(node)
        arguments: list[Any] = [self.views.get(a, a) if isinstance(a, Node) else a for a in node.args]
        if name in WHOLE and len(arguments) == 1:
            name = WHOLE[name]
        if name in POINTWISE:
            return self.pointwise(POINTWISE[name], arguments, shape, dtype)
        if name in REDUCTIONS:
            return self.reduction(name, arguments, shape, dtype)
        match name, arguments:
            case "full" | "full_like" | "scalar_tensor", _:
                return self.pointwise("{0}", [next(a for a in arguments if _is_number(a))], shape, dtype)
            case "where", [View(), View(), View()]:
                return self.pointwise("({1} if {0} else {2})", arguments, shape, dtype)
            case "argmax", [View() as x, *rest]:
                return self.argmax(x, rest[0] if rest else None, shape)
            case "_softmax", [View() as x, int() as dim, False]:
                return self.softmax(x, dim)
            case "mm", [View() as a, View() as b]:
                return self.product(a, b, None, shape, dtype)
            case "addmm", [View() as bias, View() as a, View() as b]:
                return self.product(a, b, bias.expanded(shape), shape, dtype)
            case "cat", [list() as parts, *rest]:
                return self.joined([self.views[p] for p in parts], rest[0] if rest else 0, shape, dtype)
        raise UnsupportedError(str(node.target))

    def viewed(self, name: str, node: Node) -> View | None:
        """The same elements in another order, without a copy."""
        if not node.args or not isinstance(node.args[0], Node):
            return None
        x, (shape, dtype) = self.views[node.args[0]], _form(node)
        match name, list(node.args[1:]):
            case "permute", [dims]:
                strides = tuple(x.strides[d] for d in dims)  # type: ignore[index, union-attr]
                return replace(x, shape=shape, strides=strides)
            case "select", [int() as dim, int() as index]:
                dim, index = dim % len(x.shape), index % x.shape[dim]
                rest = x.strides[:dim] + x.strides[dim + 1 :]
                return replace(x, shape=shape, strides=rest, offset=x.offset + index * x.strides[dim])
            case "expand", _:
                return x.expanded(shape)
            case "detach" | "alias", _:
                return x
            case "view" | "_unsafe_view" | "unsqueeze" | "squeeze", _:
                if x.number or x.strides != contiguous(x.shape):
                    x = self.pointwise("{0}", [x], x.shape, dtype, array=True)
                return replace(x, shape=shape, strides=contiguous(shape))
        return None

    def pointwise(
        self, text: str, arguments: Sequence[Any], shape: Shape, dtype: torch.dtype, *, array: bool = False
    ) -> View:
        """One value of each element. array: also of a single number."""
        if any(not isinstance(a, View) and not _is_number(a) for a in arguments):
            raise UnsupportedError("an argument that is no tensor and no number")
        inside = dtype if dtype != torch.bool else _common(arguments)
        out = self.array(shape, dtype) if shape or array else replace(_NUMBER, base=self.fresh(), dtype=dtype)
        indices = self.loops(shape)
        parts = [
            _cast(a.expanded(shape).at(indices), a.dtype, inside)
            if isinstance(a, View)
            else f"{DTYPES[inside]}({_literal(a)})"
            for a in arguments
        ]
        self.line(len(shape), f"{out.at(indices)} = {DTYPES[dtype]}({text.format(*parts)})")
        self.work += math.prod(shape)
        return out

    def reduction(self, name: str, arguments: Sequence[Any], shape: Shape, dtype: torch.dtype) -> View:
        x, *rest = arguments
        if name == "linalg_vector_norm" and rest and rest.pop(0) != 2:
            raise UnsupportedError("a norm that is not Euclidean")
        given = rest[0] if rest and rest[0] is not None else []
        dims = {d % len(x.shape) for d in ([given] if isinstance(given, int) else given)}
        dims = dims or set(range(len(x.shape)))
        return self.reduced(name, x, dims, shape, dtype)

    def reduced(self, name: str, x: View, dims: set[int], shape: Shape, dtype: torch.dtype) -> View:
        """Over some dimensions; those that are kept have length 1 or are not in `shape`."""
        begin, step, end = REDUCTIONS[name]
        if "inf" in begin and not dtype.is_floating_point:
            raise UnsupportedError("the greatest of whole numbers")
        kept = [d for d in range(len(x.shape)) if d not in dims]
        out = self.array(shape, dtype) if shape else replace(_NUMBER, base=self.fresh(), dtype=dtype)
        lengths = tuple(x.shape[d] for d in kept)
        outer = self.loops(lengths)
        depth = len(kept)
        self.line(depth, f"acc = {DTYPES[dtype]}({begin})")
        inner = self.loops(tuple(x.shape[d] for d in sorted(dims)), depth, depth)
        places = dict(zip([*kept, *sorted(dims)], [*outer, *inner], strict=True))
        deep = len(x.shape)
        self.line(deep, f"x = {_cast(x.at([places[d] for d in range(deep)]), x.dtype, dtype)}")
        self.line(deep, f"acc = {DTYPES[dtype]}({step})")
        packed = replace(out, shape=lengths, strides=contiguous(lengths))
        count = math.prod(x.shape[d] for d in dims)
        self.line(depth, f"{packed.at(outer)} = {DTYPES[dtype]}({end.format(n=count)})")
        self.work += math.prod(x.shape)
        return out

    def argmax(self, x: View, dim: int | None, shape: Shape) -> View:
        """The first of the greatest; not-a-number is greater than all."""
        if dim is None:
            dim, shape = 0, ()
            if len(x.shape) > 1:
                x = self.pointwise("{0}", [x], x.shape, x.dtype)
                x = replace(x, shape=(math.prod(x.shape),), strides=(1,))
        elif len(shape) == len(x.shape):
            raise UnsupportedError("argmax that keeps its dimension")
        dim %= len(x.shape)
        out = (
            self.array(shape, torch.int64)
            if shape
            else replace(_NUMBER, base=self.fresh(), dtype=torch.int64)
        )
        outer = self.loops(shape)
        depth = len(shape)
        rest = [*outer[:dim], "0", *outer[dim:]]
        self.line(depth, f"best = {x.at(rest)}")
        self.line(depth, "chosen = 0")
        self.line(depth, f"for j in range(1, {x.shape[dim]}):")
        self.line(depth + 1, f"x = {x.at([*outer[:dim], 'j', *outer[dim:]])}")
        self.line(depth + 1, "if x > best or (x != x and best == best):")
        self.line(depth + 2, "best, chosen = x, j")
        self.line(depth, f"{out.at(outer)} = np.int64(chosen)")
        self.work += math.prod(x.shape)
        return out

    def softmax(self, x: View, dim: int) -> View:
        dim %= len(x.shape)
        one = (*x.shape[:dim], 1, *x.shape[dim + 1 :])
        greatest = self.reduced("amax", x, {dim}, one, x.dtype)
        powers = self.pointwise("math.exp({0} - {1})", [x, greatest], x.shape, x.dtype)
        total = self.reduced("sum", powers, {dim}, one, x.dtype)
        return self.pointwise("{0} / {1}", [powers, total], x.shape, x.dtype)

    def product(self, a: View, b: View, bias: View | None, shape: Shape, dtype: torch.dtype) -> View:
        """[m, k] x [k, n], plus a bias [m, n]."""
        out = self.array(shape, dtype)
        row, column = self.loops(shape)
        self.line(2, f"acc = {bias.at([row, column]) if bias else DTYPES[dtype] + '(0)'}")
        self.line(2, f"for k in range({a.shape[1]}):")
        self.line(3, f"acc += {a.at([row, 'k'])} * {b.at(['k', column])}")
        self.line(2, f"{out.at([row, column])} = acc")
        self.work += math.prod(shape) * a.shape[1]
        return out

    def joined(self, parts: Iterable[View], dim: int, shape: Shape, dtype: torch.dtype) -> View:
        out = self.array(shape, dtype)
        begun = 0
        for part in parts:
            place = replace(out, offset=begun * out.strides[dim])
            indices = self.loops(part.shape)
            value = _cast(part.at(indices), part.dtype, dtype)
            self.line(len(part.shape), f"{place.at(indices)} = {value}")
            begun += part.shape[dim]
        self.work += math.prod(shape)
        return out

    def output(self, nodes: Sequence[Any]) -> None:
        """Arrays of the kernel's own, in their shapes."""
        returned = []
        for node in nodes:
            if not isinstance(node, Node):
                raise UnsupportedError("a result that is no tensor")
            x = self.views[node]
            if x.base not in self.owned or x.offset or x.strides != contiguous(x.shape):
                x = self.pointwise("{0}", [x], x.shape, x.dtype, array=True)
            returned.append(f"{x.base}.reshape({x.shape})")
        self.line(0, f"return ({', '.join(returned)},)")


_NUMBER = View("", (), (), torch.float32, number=True)


def _form(node: Node) -> tuple[Shape, torch.dtype]:
    known: Any = node.meta.get("tensor_meta")
    if not hasattr(known, "dtype") or known.dtype not in DTYPES or 0 in known.shape:
        raise UnsupportedError(f"{node.target}")
    return tuple(known.shape), known.dtype


def _is_number(value: object) -> bool:
    return isinstance(value, bool | int | float)


def _literal(value: float) -> str:
    return repr(value) if math.isfinite(value) else f"float('{value}')"


def _common(values: Iterable[Any]) -> torch.dtype:
    """The type that a comparison computes in: a tensor's, unless only the number has a fraction."""
    found = torch.bool
    for value in values:
        found = torch.promote_types(found, value.dtype) if isinstance(value, View) else found
    whole = not found.is_floating_point
    return torch.float32 if whole and any(isinstance(v, float) for v in values) else found


def _cast(text: str, given: torch.dtype, wanted: torch.dtype) -> str:
    return text if given == wanted else f"{DTYPES[wanted]}({text})"
