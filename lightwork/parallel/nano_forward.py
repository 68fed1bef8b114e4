"""A model's forward carried out by a plan of nano-operations, for real.

Over several ranks the arithmetic is theirs (sums over heads and over the MLP's width are split between
them and added, or columns are put side by side), in one process that holds all of them. Rows are dealt so
that each range has its part of the step's decodes and of its prompts.

R rows  d hidden  H query heads  D head size  F MLP width  P ranks
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lightwork.errors import SpecError
from lightwork.kernels.attention import Group, paged_attention, plan_groups
from lightwork.kernels.rows import Rows
from lightwork.models.model import KVPool, Model
from lightwork.models.transformer import embed, mlp_down, mlp_up, normalise, queries_keys_values, rotation
from lightwork.models.weights import Layer
from lightwork.parallel.lanes import Lanes
from lightwork.parallel.op_plan import NanoOp, OpPlan, serial_plan
from lightwork.parallel.overlap import carry_out
from lightwork.runtime.effects import Compute


class NanoForward:
    """Gives the hidden states that `Model.hidden` gives. lanes: with room for those of the plan."""

    def __init__(self, model: Model, plan: OpPlan, lanes: Lanes, *, tp: int = 1) -> None:
        spec = model.spec
        if spec.num_heads % tp or spec.ffn_size % tp:
            raise SpecError(
                f"{spec.num_heads} heads and an MLP of {spec.ffn_size} do not split over {tp} ranks",
                expected="a divisor of both",
            )
        self.model = model
        self.plan = plan
        self.lanes = lanes
        self.tp = tp

    def __call__(self, rows: Rows, kv: KVPool) -> Tensor:
        """Write the rows' keys and values and return their normalised hidden states, [R, d]."""
        plan, num = self.plan, len(rows.tokens)
        if self.model.spec.windowed and rows.ancestors.any():
            plan = serial_plan(num, self.tp)  # nodes of a draft hide keys by the positions of one another
        elif num != plan.rows:
            plan = plan.fitted(num)
        order = dealt(rows)
        step = NanoStep(self.model, taken(rows, order), kv, plan, self.tp)
        self.lanes.run(carry_out(plan, self.model.spec.num_layers, step.do))
        weights, spec = self.model.weights, self.model.spec
        hidden_Rd = normalise(weights, spec, step.x_Rd)
        back = torch.from_numpy(np.argsort(order)).to(self.model.device)
        return hidden_Rd[back]


def dealt(rows: Rows) -> NDArray[np.int64]:
    """The rows in an order in which decodes and prompts are mixed evenly; rows of a sequence keep theirs."""
    decodes = _single(rows)
    at = np.empty(len(decodes))
    for kind in (decodes, ~decodes):
        at[kind] = (np.arange(kind.sum()) + 0.5) / max(1, kind.sum())
    return np.argsort(at, kind="stable")


def _single(rows: Rows) -> NDArray[np.bool_]:
    """Which rows are the only one of their sequence."""
    single: NDArray[np.bool_] = np.bincount(rows.seqs)[rows.seqs] == 1
    return single


def taken(rows: Rows, index: NDArray[np.int64]) -> Rows:
    """Some of the rows, in this order, none scored."""
    per_row = ("tokens", "positions", "slots", "seqs", "index", "ancestors")
    some = {name: getattr(rows, name)[index] for name in per_row}
    return replace(rows, scored=np.zeros(0, np.int64), **some)


class NanoStep:
    """One forward: the values of its rows, and what each operator does to them."""

    def __init__(self, model: Model, rows: Rows, kv: KVPool, plan: OpPlan, tp: int) -> None:
        spec, device = model.spec, model.device
        self.model = model
        self.spec = spec
        self.kv = kv
        self.tp = tp
        self.slots_R = torch.from_numpy(rows.slots).to(device)
        tokens_R, positions_R = (torch.from_numpy(a).to(device) for a in (rows.tokens, rows.positions))
        self.x_Rd = embed(model.weights, tokens_R, positions_R)
        self.cos_sin = rotation(spec, positions_R, model.dtype)
        num, new = len(rows.tokens), partial(torch.empty, dtype=model.dtype, device=device)
        self.q_RHD = new(num, spec.num_heads, spec.head_size)
        self.heads_RHD = torch.empty_like(self.q_RHD)
        self.parts_PRd = new(tp, num, spec.hidden_size)
        self.wide_RF = new(num, max(spec.ffn_size, spec.dense_ffn_size, spec.hidden_size))
        self.attention = {
            op: self._groups(rows, op) for op in plan.ops if op.operator in ("decode", "prefill")
        }
        self.operators: dict[str, Callable[[int, NanoOp], None]] = {
            "qkv": self._qkv,
            "decode": self._attend,
            "prefill": self._attend,
            "gather_heads": _nothing,
            "out_parts": self._out_parts,
            "out_columns": self._out_columns,
            "reduce_out": self._reduce,
            "gather_columns": self._gather_columns,
            "up": self._up,
            "down": self._down,
            "reduce_down": self._reduce,
        }

    def do(self, layer: int, op: NanoOp) -> Compute:
        return Compute((), self.operators[op.operator], (layer, op), op.operator)

    def _layer(self, i: int) -> Layer:
        return self.model.weights.layers[i]

    def _groups(self, rows: Rows, op: NanoOp) -> tuple[Tensor, list[Group]] | None:
        """The rows of an attention's range that are decodes, or that are not, and their arrangement."""
        single = _single(rows)[op.start : op.stop]
        index = op.start + np.flatnonzero(single if op.operator == "decode" else ~single)
        if not len(index):
            return None
        device = self.model.device
        groups = plan_groups(taken(rows, index), self.kv.block_size, device, windows=bool(self.spec.windowed))
        return torch.from_numpy(index).to(device), groups

    def _qkv(self, i: int, op: NanoOp) -> None:
        at = slice(op.start, op.stop)
        cos_sin = None if self.cos_sin is None else (self.cos_sin[0][at], self.cos_sin[1][at])
        q, k, v = queries_keys_values(self.x_Rd[at], self._layer(i), self.spec, cos_sin)
        self.q_RHD[at] = q
        self.kv.keys_LTGD[i].index_copy_(0, self.slots_R[at], k)
        self.kv.values_LTGD[i].index_copy_(0, self.slots_R[at], v)

    def _attend(self, i: int, op: NanoOp) -> None:
        found = self.attention[op]
        if found is not None:
            index, groups = found
            keys, values = self.kv.keys_LTGD[i], self.kv.values_LTGD[i]
            out = paged_attention(self.q_RHD[index], keys, values, groups, self.spec.window(i))
            self.heads_RHD.index_copy_(0, index, out)

    def _out_parts(self, i: int, op: NanoOp) -> None:
        self._partial_sums(self.heads_RHD.flatten(1), self._layer(i).out, self._layer(i).out_bias, op)

    def _out_columns(self, i: int, op: NanoOp) -> None:
        layer, at = self._layer(i), slice(op.start, op.stop)
        x = self.heads_RHD[at].flatten(1)
        sums = self.parts_PRd[0, at]
        for part, weight in zip(sums.chunk(self.tp, 1), layer.out.chunk(self.tp), strict=True):
            part.copy_(F.linear(x, weight))
        if layer.out_bias is not None:
            sums += layer.out_bias

    def _gather_columns(self, i: int, op: NanoOp) -> None:
        at = slice(op.start, op.stop)
        self.x_Rd[at] += self.parts_PRd[0, at]

    def _up(self, i: int, op: NanoOp) -> None:
        at = slice(op.start, op.stop)
        wide = mlp_up(self.x_Rd[at], self._layer(i), self.spec)
        self.wide_RF[at, : wide.shape[1]] = wide

    def _down(self, i: int, op: NanoOp) -> None:
        layer, at = self._layer(i), slice(op.start, op.stop)
        if layer.router is not None:
            self._give(mlp_down(self.wide_RF[at, : self.spec.hidden_size], layer), op)
        else:
            self._partial_sums(self.wide_RF[:, : layer.down.shape[1]], layer.down, layer.down_bias, op)

    def _partial_sums(self, x: Tensor, weight: Tensor, bias: Tensor | None, op: NanoOp) -> None:
        """A product whose sum over inputs is split between the ranks; the first adds the bias."""
        at = slice(op.start, op.stop)
        if self.tp == 1:
            self.x_Rd[at] += F.linear(x[at], weight, bias)
            return
        inputs, weights = x[at].chunk(self.tp, 1), weight.chunk(self.tp, 1)
        for rank, (part, columns) in enumerate(zip(inputs, weights, strict=True)):
            self.parts_PRd[rank, at] = F.linear(part, columns, None if rank else bias)

    def _give(self, whole: Tensor, op: NanoOp) -> None:
        """A sum that was not split."""
        at = slice(op.start, op.stop)
        if self.tp == 1:
            self.x_Rd[at] += whole
            return
        self.parts_PRd[:, at] = 0
        self.parts_PRd[0, at] = whole

    def _reduce(self, i: int, op: NanoOp) -> None:
        at = slice(op.start, op.stop)
        self.x_Rd[at] += self.parts_PRd[:, at].sum(0)


def _nothing(i: int, op: NanoOp) -> None:
    """Heads lie in one memory already."""
