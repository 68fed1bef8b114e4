"""Lean attention over paged keys and values: decode, tree verification and prefill are one kernel.

Paper: "Lean Attention: Hardware-Aware Scalable Attention Mechanism for the Decode-Phase of Transformers",
2024. A fixed number of persistent programs take contiguous runs of tasks (`tasks`), so all finish together
whatever the lengths. Where the paper's programs merge what they have in registers, ours store each chunk's
(maximum, sum, output) on its own and a second kernel folds them in the order of keys: the result depends
neither on the number of programs nor on who shares the batch.

R rows  H query heads  G key-value heads  D head size  T tasks  P partial results
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightwork.kernels.gpu._triton import at_least, constexpr, kernel, tensor, tl
from lightwork.kernels.gpu.mirror import Mirror
from lightwork.kernels.gpu.tasks import FOLD_FIELDS, TASK_FIELDS, Plan, Tile
from lightwork.kernels.rows import Rows

KEYS_BYTES = 128
"""Keys that are multiplied at a time, times the bytes of a number: 64 of bfloat16."""

FOLDED = 16
"""Chunks that are folded at a time."""

LOG2_E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """A Plan and what its kernels read of the rows, in buffers of a Mirror that may be longer than needed.

    parts: tile, tasks, number of tasks. index, positions: int32[R]. ancestors: int64[R]. tables: int32, all
    sequences' tables one after another. sums: float32[P, 2]. outputs: float32[P, D].
    """

    parts: tuple[tuple[Tile, Tensor, Tensor], ...]
    folds: Tensor
    index: Tensor
    positions: Tensor
    ancestors: Tensor
    tables: Tensor
    sums: Tensor
    outputs: Tensor


def place_plan(
    mirror: Mirror, name: str, plan: Plan, rows: Rows, head_size: int, padding: int = 0
) -> DevicePlan:
    """Copy a plan to the device. padding: rows to add that read nothing and give zeros.

    name: of the plan, so that plans of one step do not share buffers.
    """

    def padded(array: np.ndarray, dtype: type) -> np.ndarray:
        return np.pad(array.astype(dtype, copy=False), (0, padding))

    parts = []
    for tile, tasks in plan.parts:
        at = f"{name}/{tile.lanes}"
        count = mirror.put(f"{at}/count", np.array([len(tasks)], np.int32))
        parts.append((tile, mirror.put(f"{at}/tasks", tasks), count))
    return DevicePlan(
        parts=tuple(parts),
        folds=mirror.put(f"{name}/folds", np.pad(plan.folds, ((0, padding), (0, 0)))),
        index=mirror.put("index", padded(rows.index, np.int32)),
        positions=mirror.put("positions", padded(rows.positions, np.int32)),
        ancestors=mirror.put("ancestors", padded(rows.ancestors.view(np.int64), np.int64)),
        tables=mirror.put("tables", rows.tables),
        sums=mirror.reserve(f"{name}/sums", 2 * plan.num_partials, torch.float32),
        outputs=mirror.reserve(f"{name}/outputs", head_size * plan.num_partials, torch.float32),
    )


def lean_attention(
    q_RHD: Tensor,
    keys_TGD: Tensor,
    values_TGD: Tensor,
    plan: DevicePlan,
    *,
    block_size: int,
    window: int | None,
    units: int,
) -> Tensor:
    """Attention of rows over paged keys and values, softmax scale 1/sqrt(D). Returns [R, H, D].

    q's last two dimensions are contiguous. units: multiprocessors; what they hold of a tile's programs share
    its tasks. A row that sees no key gives zeros.
    """
    num_rows, heads, size = q_RHD.shape
    share = heads // keys_TGD.shape[1]
    number_bytes = keys_TGD.element_size()
    rows = (plan.tables, plan.index, plan.positions, plan.ancestors)
    shape = {"SHARE": share, "SIZE": size, "PADDED": at_least(size, 16), "enable_fp_fusion": True}
    for tile, tasks, count in plan.parts:
        workers, lanes = units * tile.per_unit, at_least(share, tile.lanes)
        _partials[(workers,)](
            *(q_RHD, keys_TGD, values_TGD, tasks, count, *rows, plan.sums, plan.outputs),
            *(q_RHD.stride(0), LOG2_E / size**0.5, window or 0),
            KV_HEADS=keys_TGD.shape[1],
            LANES=lanes,
            KEYS=KEYS_BYTES // number_bytes,
            BLOCK=block_size,
            WORKERS=workers,
            WINDOWED=window is not None,
            FIELDS=TASK_FIELDS,
            num_warps=8 if lanes * number_bytes >= 256 else 4,
            num_stages=3 if number_bytes == 2 else 2,
            **shape,
        )
    out_RHD = torch.empty((num_rows, heads, size), dtype=q_RHD.dtype, device=q_RHD.device)
    _fold[(num_rows, heads)](
        plan.sums, plan.outputs, plan.folds, out_RHD, FOLDED=FOLDED, FIELDS=FOLD_FIELDS, **shape
    )
    return out_RHD


@kernel
def _partials(
    q: tensor,
    keys: tensor,
    values: tensor,
    tasks: tensor,
    num_tasks: tensor,
    tables: tensor,
    index: tensor,
    positions: tensor,
    ancestors: tensor,
    sums: tensor,
    outputs: tensor,
    q_stride: tensor,
    scale: tensor,
    window: tensor,
    SHARE: constexpr,
    KV_HEADS: constexpr,
    SIZE: constexpr,
    PADDED: constexpr,
    LANES: constexpr,
    KEYS: constexpr,
    BLOCK: constexpr,
    WORKERS: constexpr,
    WINDOWED: constexpr,
    FIELDS: constexpr,
) -> None:
    worker = tl.program_id(0).to(tl.int64)
    total = tl.load(num_tasks)
    lane = tl.arange(0, LANES)
    d = tl.arange(0, PADDED)
    for t in range(total * worker // WORKERS, total * (worker + 1) // WORKERS):
        task = tasks + t * FIELDS
        num_rows = tl.load(task + 1)
        head = tl.load(task + 2)
        live = lane // SHARE < num_rows
        row = tl.load(task) + lane // SHARE
        at = row.to(tl.int64)[:, None] * q_stride + ((head * SHARE + lane % SHARE) * SIZE)[:, None]
        inside = live[:, None] & (d < SIZE)[None, :]
        queries = tl.load(q + at + d[None, :], mask=inside, other=0.0)
        own = tl.load(index + row, mask=live, other=-1)
        position = tl.load(positions + row, mask=live, other=0)
        branch = tl.load(ancestors + row, mask=live, other=0)
        high, weight, output = _chunk(
            queries, own, position, branch, keys, values, tables, positions, task, head, scale, window,
            KV_HEADS, SIZE, PADDED, LANES, KEYS, BLOCK, WINDOWED,
        )  # fmt: skip
        partial = tl.load(task + 5).to(tl.int64) + lane
        tl.store(sums + partial * 2, high, mask=live)
        tl.store(sums + partial * 2 + 1, weight, mask=live)
        tl.store(outputs + partial[:, None] * SIZE + d[None, :], output, mask=inside)


@kernel
def _chunk(
    queries: tensor,
    own: tensor,
    position: tensor,
    branch: tensor,
    keys: tensor,
    values: tensor,
    tables: tensor,
    positions: tensor,
    task: tensor,
    head: tensor,
    scale: tensor,
    window: tensor,
    KV_HEADS: constexpr,
    SIZE: constexpr,
    PADDED: constexpr,
    LANES: constexpr,
    KEYS: constexpr,
    BLOCK: constexpr,
    WINDOWED: constexpr,
) -> tensor:
    """One chunk's maximum, sum and unnormalised output per lane, in powers of two."""
    begin = tl.load(task + 3)
    end = tl.load(task + 4)
    table = tables + tl.load(task + 6)
    d = tl.arange(0, PADDED)
    # Finite, so that a lane which has seen no key yet subtracts to zero and not to NaN.
    high = tl.full([LANES], -1e30, tl.float32)
    weight = tl.zeros([LANES], tl.float32)
    output = tl.zeros([LANES, PADDED], tl.float32)
    for step in range((end - begin + KEYS - 1) // KEYS):
        j = begin + step * KEYS + tl.arange(0, KEYS)
        there = j < end
        slot = tl.load(table + j // BLOCK, mask=there, other=0).to(tl.int64) * BLOCK + j % BLOCK
        at = (slot * KV_HEADS + head) * SIZE
        k = tl.load(keys + at[None, :] + d[:, None], mask=there[None, :] & (d < SIZE)[:, None], other=0.0)
        scores = tl.dot(queries, k, input_precision="ieee") * scale
        visible = there[None, :] & _visible(own, branch, j - tl.load(task + 7), j)
        if WINDOWED:
            visible &= position[:, None] - _places(positions, task, j, there)[None, :] < window
        scores = tl.where(visible, scores, -1e30)
        higher = tl.maximum(high, tl.max(scores, 1))
        shrink = tl.exp2(high - higher)
        shares = tl.where(visible, tl.exp2(scores - higher[:, None]), 0.0)
        v = tl.load(values + at[:, None] + d[None, :], mask=there[:, None] & (d < SIZE)[None, :], other=0.0)
        output = output * shrink[:, None] + tl.dot(shares.to(v.dtype), v, input_precision="ieee")
        weight = weight * shrink + tl.sum(shares, 1)
        high = higher
    return high, weight, output


@kernel
def _visible(own: tensor, branch: tensor, node: tensor, j: tensor) -> tensor:
    """Which keys j, draft nodes from node 0 on, the lanes see. own: their key index. branch: ancestors."""
    bit = tl.minimum(tl.maximum(node, 0), 63).to(tl.int64)
    drafted = (node >= 0) & (node < 64)
    ancestor = ((branch[:, None] >> bit[None, :]) & 1) == 1
    return ((node < 0)[None, :] & (j[None, :] <= own[:, None])) | (drafted[None, :] & ancestor)


@kernel
def _places(positions: tensor, task: tensor, j: tensor, there: tensor) -> tensor:
    """Positions of keys: their index, but for those of this step, which may be draft nodes."""
    row = j - tl.load(task + 9)
    fresh = there & (row >= 0)
    return tl.where(fresh, tl.load(positions + tl.load(task + 8) + row, mask=fresh, other=0), j)


@kernel
def _fold(
    sums: tensor,
    outputs: tensor,
    folds: tensor,
    out: tensor,
    SHARE: constexpr,
    SIZE: constexpr,
    PADDED: constexpr,
    FOLDED: constexpr,
    FIELDS: constexpr,
) -> None:
    """Merge the chunks of one row and query head in the order of their keys."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    chunks = tl.load(folds + row * FIELDS + 1)
    stride = tl.load(folds + row * FIELDS + 2).to(tl.int64)
    first = tl.load(folds + row * FIELDS) + (head // SHARE) * chunks * stride + head % SHARE
    d = tl.arange(0, PADDED)
    high = tl.full([1], -1e30, tl.float32)
    weight = tl.zeros([1], tl.float32)
    output = tl.zeros([PADDED], tl.float32)
    for step in range((chunks + FOLDED - 1) // FOLDED):
        c = step * FOLDED + tl.arange(0, FOLDED)
        there = c < chunks
        at = first + c * stride
        highs = tl.load(sums + at * 2, mask=there, other=-1e30)
        weights = tl.load(sums + at * 2 + 1, mask=there, other=0.0)
        inside = there[:, None] & (d < SIZE)[None, :]
        parts = tl.load(outputs + at[:, None] * SIZE + d[None, :], mask=inside, other=0.0)
        higher = tl.maximum(high, tl.max(highs, 0))
        shrink = tl.exp2(high - higher)
        shares = tl.exp2(highs - higher)
        output = output * shrink + tl.sum(parts * shares[:, None], 0)
        weight = weight * shrink + tl.sum(weights * shares, 0)
        high = higher
    output = output / tl.where(weight == 0.0, 1.0, weight)
    at = out + (row * tl.num_programs(1) + head) * SIZE + d
    tl.store(at, output.to(out.dtype.element_ty), mask=d < SIZE)
