"""Plans of nano-operations drawn at random: any ranges, any order that values allow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightwork.parallel.op_plan import HIDDEN, NanoOp, OpPlan, layer_operators, out_names, sources

SHARES = {"compute": 0.3, "memory": 0.4, "network": 0.3}


def pipeline(ops: Sequence[NanoOp], rows: int, tp: int = 1) -> OpPlan:
    """Lanes by resource, and a wait for every value that is read."""
    operators = layer_operators(tp)
    resource = {o.name: o.resource for o in operators}
    made = []
    for i, op in enumerate(ops):
        found = [*sources(ops, operators, i)]
        made.append(
            op._replace(
                lane=resource[op.operator],
                share=SHARES[resource[op.operator]],
                after=tuple(j for j, value in found if value != HIDDEN),
                behind=tuple(j for j, value in found if value == HIDDEN),
            )
        )
    return OpPlan(rows=rows, operators=operators, ops=tuple(made))


def random_pipeline(seed: int, rows: int, tp: int = 1) -> OpPlan:
    """One to three ranges, cut further for attention; output projections split either way; any order."""
    rng = np.random.default_rng(seed)
    num = int(rng.integers(1, min(4, rows) + 1))
    stops = [*np.sort(rng.choice(np.arange(1, rows), num - 1, replace=False)).tolist(), rows]
    starts = [0, *stops[:-1]]
    ops = [
        NanoOp(name, a, b)
        for a, b in zip(starts, stops, strict=True)
        for name in ("qkv", "decode", "prefill")
    ]
    wide = sorted({rows, *rng.choice(stops, int(rng.integers(1, num + 1))).tolist()})
    for a, b in zip([0, *wide[:-1]], wide, strict=True):
        names = [*out_names(tp, bool(rng.integers(2))), "up", "down", *["reduce_down"][: tp - 1]]
        ops += [NanoOp(name, a, b) for name in names]
    return pipeline(_shuffled(ops, tp, rng), rows, tp)


def _shuffled(ops: list[NanoOp], tp: int, rng: np.random.Generator) -> list[NanoOp]:
    """In a random order in which each comes after those it reads from."""
    operators = layer_operators(tp)
    reads = [{j for j, value in sources(ops, operators, i) if value != HIDDEN} for i in range(len(ops))]
    placed: list[int] = []
    while len(placed) < len(ops):
        ready = [i for i in range(len(ops)) if i not in placed and reads[i] <= {*placed}]
        placed.append(int(rng.choice(ready)))
    return [ops[i] for i in placed]
