"""The whole forward of a step in one compiled call, or some blocks of it, for dense and mixture-of-experts
transformers.

Threads run it together. A step is a sequence of phases; within one, threads take rows or blocks of 64 outputs
from each other's ranges, and at its end they wait for each other. Nothing is allocated.

Layers come in groups, mostly of one. The attentions of a group all take the input of its first layer, so each
of their phases is one phase of all of them: rows of qkv and mixed are the first layer's, then the next one's.

d hidden  H query heads  G key-value heads  D head size
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lightwork.kernels.cpu.attention import attend_run, merge_cut
from lightwork.kernels.cpu.attention_plan import plan_attention
from lightwork.kernels.cpu.compiled import compiled
from lightwork.kernels.cpu.deltas import reduce_phase
from lightwork.kernels.cpu.experts import choose_experts, mix_experts, sort_by_expert
from lightwork.kernels.cpu.pages import store_token
from lightwork.kernels.cpu.primitives import copy, floats, int_at, ints, record_at, shorts
from lightwork.kernels.cpu.product import (
    ACTIVATED,
    ADDED,
    GATED,
    PLAIN,
    encode,
    encode_phase,
    product_phase,
    row_of,
)
from lightwork.kernels.cpu.rowwise import LOG2_E, layer_norm, rms_norm, rotate, widen
from lightwork.kernels.cpu.sharing import barrier, call_helpers, take, wait_for_call
from lightwork.kernels.cpu.state import (
    DOWN,
    DOWN_BIAS,
    DOWN_PRODUCT,
    FFN,
    K_NORM,
    LAYER_COLUMNS,
    NORM1,
    NORM1_BIAS,
    NORM2,
    NORM2_BIAS,
    OUT,
    OUT_BIAS,
    OUT_PRODUCT,
    PLAN_COLUMNS,
    PRODUCTS_PER_LAYER,
    Q_NORM,
    QKV,
    QKV_BIAS,
    QKV_PRODUCT,
    ROUTER,
    RUNS_PER_THREAD,
    UP,
    UP_BIAS,
    UP_PRODUCT,
    WINDOW,
)


@compiled
def run(thread: int, record: int) -> None:
    """Thread 0 runs one step; the others run steps with it until they are dismissed.

    record: its address, of a State whose batch is filled. Writes the keys and values of the rows to the pool
    and the logits of the scored ones.
    """
    t = record_at(record)
    if thread == 0:
        call_helpers(t)
        _forward(t, thread)
        return
    while wait_for_call(t, thread):
        _forward(t, thread)


@compiled
def attend_alone(thread: int, record: int) -> None:
    """The attention of the first layer and nothing else, by all threads as in `run`: to measure it."""
    t = record_at(record)
    while thread == 0 or wait_for_call(t, thread):
        if thread == 0:
            call_helpers(t)
            plan_attention(t)
        _attend(t, thread, barrier(t, 0), 0, 1, t.ancestors, 0, t.plan)
        if thread == 0:
            return


@compiled
def _forward(t: Any, thread: int) -> None:
    """Blocks [first_block, last_block) of the forward; the rows are in x between calls.

    Groups of several layers are in one call.
    """
    # Read before any barrier: after the last one, the leader may name the blocks of the next call.
    phase, begin, end, head = 0, t.first_block, t.last_block, 1 + 2 * t.num_layers
    if begin == 0:
        if thread == 0:
            plan_attention(t)
        _embed(t, thread, phase)
        phase = barrier(t, phase)
    for group in range(t.num_groups):
        first, after = int_at(t.group_starts, group), int_at(t.group_starts, group + 1)
        if begin <= 1 + 2 * first < end:
            phase = _attend_group(t, thread, phase, first, after - first)
        for number in range(first, after):
            layer = _layer(t, number)
            if begin <= 1 + 2 * number < end:
                phase = _leave_attention(t, thread, phase, layer, number, number - first)
            if not begin <= 2 + 2 * number < end:
                continue
            if layer[ROUTER] >= 0:
                phase = _experts(t, thread, phase, layer)
            else:
                phase = _mlp(t, thread, phase, layer, number)
    if end > head:
        _score(t, thread, phase)


@compiled
def _layer(t: Any, number: int) -> Any:
    return ints(t.layers + 8 * LAYER_COLUMNS * number, LAYER_COLUMNS)


@compiled
def _multiply(
    t: Any,
    thread: int,
    phase: int,
    then: int,
    matrix: int,
    buffer: int,
    size: int,
    bias: int,
    outputs: int,
    out: int,
    out_width: int,
    product: int,
) -> int:
    """All rows of a buffer times a matrix of `size` inputs, and what adapters add; the next phase.

    The rest as `product_phase` has it.
    """
    phase = reduce_phase(t, thread, phase, product, buffer, size)
    adapted = product if t.runs else -1
    product_phase(
        t, thread, phase, then, matrix, 1, t.row_starts, buffer, bias, outputs, out, out_width, adapted
    )
    return barrier(t, phase)


# -- rows


@compiled
def _normalise(t: Any, weight: int, bias: int, x: Any, out: Any) -> None:
    if t.layer_norm:
        bias_at = floats(t.vectors + 4 * bias, x.shape[0])
        layer_norm(x, floats(t.vectors + 4 * weight, x.shape[0]), bias_at, np.float32(t.eps), out)
    else:
        rms_norm(x, floats(t.vectors + 4 * weight, x.shape[0]), np.float32(t.eps), out)


@compiled
def _embed(t: Any, thread: int, phase: int) -> None:
    while True:
        r, last = take(t, phase, thread, t.rows, 1)
        if r == last:
            return
        token, out = int_at(t.tokens, r), floats(t.x + 4 * r * t.hidden, t.hidden)
        if token < 0:
            copy(floats(t.probes + 4 * (-1 - token) * t.hidden, t.hidden), out)
        elif t.embed_half < 0:
            copy(floats(t.embed + 4 * token * t.hidden, t.hidden), out)
        else:
            widen(shorts(t.embed + 2 * token * t.hidden, t.hidden), t.embed_half, out)
        if t.positions:
            learned = floats(t.positions + 4 * int_at(t.row_positions, r) * t.hidden, t.hidden)
            for k in range(t.hidden):
                out[k] += learned[k]


@compiled
def _enter(t: Any, thread: int, phase: int, norm: int, bias: int, router: int) -> None:
    """Normalise every row of x into mixed for an MLP; then encode it, or choose its experts."""
    while True:
        r, last = take(t, phase, thread, t.rows, 1)
        if r == last:
            return
        row = row_of(t, t.mixed, r, t.hidden)
        _normalise(t, norm, bias, floats(t.x + 4 * r * t.hidden, t.hidden), row)
        if router < 0:
            encode(t, t.mixed, r, t.hidden)
        else:
            choose_experts(
                row,
                floats(t.vectors + 4 * router, t.experts * t.hidden),
                floats(t.expert_scores + 4 * thread * t.experts, t.experts),
                t.normalise_gates,
                _of_row(t, t.expert_of, r),
                floats(t.gate_of + 4 * r * t.experts_per_token, t.experts_per_token),
            )


@compiled
def _of_row(t: Any, table: int, r: int) -> Any:
    """Row r of expert_of or order."""
    return ints(table + 8 * r * t.experts_per_token, t.experts_per_token)


# -- attention


@compiled
def _attend_group(t: Any, thread: int, phase: int, first: int, count: int) -> int:
    """The attentions of `count` layers on one input, but for what leads out of them."""
    phase = _project(t, thread, phase, first, count)
    window = _layer(t, first)[WINDOW]
    if window:
        return _attend(t, thread, phase, first, count, t.windowed_ancestors, window, t.windowed_plan)
    return _attend(t, thread, phase, first, count, t.ancestors, 0, t.plan)


@compiled
def _project(t: Any, thread: int, phase: int, first: int, count: int) -> int:
    """Queries, keys and values of every row for each of `count` layers, rotated; keys and values stored."""
    width = (t.heads + 2 * t.kv_heads) * t.head_size
    while True:
        at, last = take(t, phase, thread, count * t.rows, 1)
        if at == last:
            break
        layer, x = _layer(t, first + at // t.rows), t.x + 4 * (at % t.rows) * t.hidden
        row = row_of(t, t.mixed, at, t.hidden)
        _normalise(t, layer[NORM1], layer[NORM1_BIAS], floats(x, t.hidden), row)
        encode(t, t.mixed, at, t.hidden)
    phase = barrier(t, phase)
    product, matrix = PRODUCTS_PER_LAYER * first + QKV_PRODUCT, _layer(t, first)[QKV]
    phase = reduce_phase(t, thread, phase, product, t.mixed, t.hidden)
    adapted = product if t.runs else -1
    product_phase(
        t, thread, phase, PLAIN, matrix, count, t.row_starts, t.mixed, -1, width, t.qkv, width, adapted
    )
    phase = barrier(t, phase)
    while True:
        at, last = take(t, phase, thread, count * t.rows, 1)
        if at == last:
            break
        _rotate_and_store(t, first + at // t.rows, at % t.rows, t.qkv + 4 * at * width)
    return barrier(t, phase)


@compiled
def _rotate_and_store(t: Any, number: int, r: int, row: int) -> None:
    """Add the bias to row r's projections, which are at `row`, normalise and rotate its queries and keys,
    scale queries for exp2, store key and value."""
    layer, size = _layer(t, number), t.head_size
    if layer[QKV_BIAS] >= 0:
        width = (t.heads + 2 * t.kv_heads) * size
        all_of_it, bias = floats(row, width), floats(t.vectors + 4 * layer[QKV_BIAS], width)
        for k in range(width):
            all_of_it[k] += bias[k]
    scale = LOG2_E / np.sqrt(np.float32(size))
    at = 4 * int_at(t.row_positions, r) * (size // 2)
    for h in range(t.heads + t.kv_heads):
        part = floats(row + 4 * h * size, size)
        norm = layer[Q_NORM] if h < t.heads else layer[K_NORM]
        if norm >= 0:
            rms_norm(part, floats(t.vectors + 4 * norm, size), np.float32(t.eps), part)
        if t.cosines:
            rotate(part, floats(t.cosines + at, size // 2), floats(t.sines + at, size // 2))
        if h < t.heads:
            for d in range(size):
                part[d] *= scale
    slot = int_at(t.slots, r)
    for g in range(t.kv_heads):
        key = floats(row + 4 * (t.heads + g) * size, size)
        value = floats(row + 4 * (t.heads + t.kv_heads + g) * size, size)
        store_token(t, number, slot, g, key, value)


@compiled
def _attend(
    t: Any, thread: int, phase: int, first: int, layers: int, ancestors: int, window: int, plan: int
) -> int:
    """Attention of every row in each of some layers, from qkv into mixed: first over the keys that groups of
    sequences share."""
    tiles = plan + 8 * PLAN_COLUMNS
    for part in range(2):
        count, units = int_at(plan, 2 * part), int_at(plan, 2 * part + 1)
        if count:
            phase = _attend_tiles(t, thread, phase, first, layers, ancestors, window, tiles, count, units)
        tiles += 8 * PLAN_COLUMNS * count
    return phase


@compiled
def _attend_tiles(
    t: Any,
    thread: int,
    phase: int,
    first: int,
    layers: int,
    ancestors: int,
    window: int,
    tiles: int,
    count: int,
    units: int,
) -> int:
    runs = min(units, max(1, t.threads * RUNS_PER_THREAD // layers))
    while True:
        one, last = take(t, phase, thread, layers * runs, 1)
        if one == last:
            break
        layer, run = one // runs, one % runs
        attend_run(t, thread, first + layer, layer, ancestors, window, tiles, count, units, runs, run)
    phase = barrier(t, phase)
    while True:
        one, last = take(t, phase, thread, layers * runs, 1)
        if one == last:
            break
        if one % runs > 0:
            merge_cut(t, thread, one // runs, tiles, count, units, runs, one % runs)
    return barrier(t, phase)


@compiled
def _leave_attention(t: Any, thread: int, phase: int, layer: Any, number: int, among: int) -> int:
    """The output projection, added to x. among: which of its group the layer is."""
    heads, inside = t.mixed + 4 * among * t.rows * t.width, t.heads * t.head_size
    encode_phase(t, thread, phase, heads, t.rows, inside)
    phase = barrier(t, phase)
    product, bias = PRODUCTS_PER_LAYER * number + OUT_PRODUCT, layer[OUT_BIAS]
    return _multiply(
        t, thread, phase, ADDED, layer[OUT], heads, inside, bias, t.hidden, t.x, t.hidden, product
    )


# -- MLP and experts


@compiled
def _mlp(t: Any, thread: int, phase: int, layer: Any, number: int) -> int:
    """The MLP, added to x."""
    _enter(t, thread, phase, layer[NORM2], layer[NORM2_BIAS], -1)
    phase = barrier(t, phase)
    then, ffn = GATED if t.gated else ACTIVATED, layer[FFN]
    product = PRODUCTS_PER_LAYER * number + UP_PRODUCT
    phase = _multiply(
        t, thread, phase, then, layer[UP], t.mixed, t.hidden, layer[UP_BIAS], ffn, t.wide, t.width, product
    )
    encode_phase(t, thread, phase, t.wide, t.rows, ffn)
    phase = barrier(t, phase)
    product = PRODUCTS_PER_LAYER * number + DOWN_PRODUCT
    return _multiply(
        t, thread, phase, ADDED, layer[DOWN], t.wide, ffn, layer[DOWN_BIAS], t.hidden, t.x, t.hidden, product
    )


@compiled
def _experts(t: Any, thread: int, phase: int, layer: Any) -> int:
    """Each row through its experts, rows of one expert side by side, mixed into x."""
    assigned = t.rows * t.experts_per_token
    _enter(t, thread, phase, layer[NORM2], layer[NORM2_BIAS], layer[ROUTER])
    phase = barrier(t, phase)
    if thread == 0:
        sort_by_expert(ints(t.expert_of, assigned), ints(t.order, assigned), ints(t.starts, t.experts + 1))
    phase = barrier(t, phase)
    while True:
        r, last = take(t, phase, thread, t.rows, 1)
        if r == last:
            break
        for place in _of_row(t, t.order, r):
            copy(row_of(t, t.mixed, r, t.hidden), row_of(t, t.gathered, place, t.hidden))
            encode(t, t.gathered, place, t.hidden)
    phase = barrier(t, phase)
    then, ffn = GATED if t.gated else ACTIVATED, layer[FFN]
    product_phase(
        t, thread, phase, then, layer[UP], t.experts, t.starts, t.gathered, -1, ffn, t.wide, t.width, -1
    )
    phase = barrier(t, phase)
    encode_phase(t, thread, phase, t.wide, assigned, ffn)
    phase = barrier(t, phase)
    product_phase(
        t,
        thread,
        phase,
        PLAIN,
        layer[DOWN],
        t.experts,
        t.starts,
        t.wide,
        -1,
        t.hidden,
        t.expert_out,
        t.hidden,
        -1,
    )
    phase = barrier(t, phase)
    while True:
        r, last = take(t, phase, thread, t.rows, 1)
        if r == last:
            break
        gates = floats(t.gate_of + 4 * r * t.experts_per_token, t.experts_per_token)
        out = floats(t.expert_out, assigned * t.hidden)
        mix_experts(floats(t.x + 4 * r * t.hidden, t.hidden), out, _of_row(t, t.order, r), gates)
    return barrier(t, phase)


@compiled
def _score(t: Any, thread: int, phase: int) -> None:
    """The final norm and the logits of the scored rows."""
    while True:
        i, last = take(t, phase, thread, t.scored, 1)
        if i == last:
            break
        row = floats(t.x + 4 * int_at(t.scored_rows, i) * t.hidden, t.hidden)
        _normalise(t, t.norm, t.norm_bias, row, row_of(t, t.mixed, i, t.hidden))
        encode(t, t.mixed, i, t.hidden)
    phase = barrier(t, phase)
    product_phase(
        t, thread, phase, PLAIN, t.head, 1, t.every_scored, t.mixed, -1, t.vocab, t.logits, t.vocab, -1
    )
    barrier(t, phase)
