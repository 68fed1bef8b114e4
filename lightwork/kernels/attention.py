"""Paged attention, the torch reference: right on CPU and GPU, for chunks, draft trees, windows and grouped
heads.

R rows  S sequences  H query heads  G key-value heads  D head size  K keys of the longest sequence in a group
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lightwork.kernels.rows import Rows

MAX_PADDING = 2.0
"""Sequences are computed together while the padded keys are at most this many times the true ones."""


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences of one rows-per-sequence count, computed in one call.

    rows [S, M]: their rows. slots [S, K]: where their keys are, padding pointing at any slot. visible [S,
    M, K]. distance [S, M, K]: row position minus key position, for sliding windows; None when no layer has
    one.
    """

    rows: Tensor
    slots: Tensor
    visible: Tensor
    distance: Tensor | None


def plan_groups(rows: Rows, block_size: int, device: torch.device | str, *, windows: bool) -> list[Group]:
    """Arrange a step's attention: sequences with equally many rows and similar lengths share a call."""
    first = np.flatnonzero(np.diff(rows.seqs, prepend=-1))
    counts = np.diff(np.append(first, len(rows.seqs)))
    seqs = rows.seqs[first]
    lengths = rows.index[first + counts - 1] + 1
    order = np.lexsort((lengths, counts))
    groups: list[Group] = []
    start = 0
    while start < len(order):
        stop = start + 1
        total = int(lengths[order[start]])
        while stop < len(order) and counts[order[stop]] == counts[order[start]]:
            length = int(lengths[order[stop]])
            if length * (stop - start + 1) > MAX_PADDING * (total + length):
                break
            total += length
            stop += 1
        picked = order[start:stop]
        count = int(counts[picked[0]])
        groups.append(_group(rows, first[picked], count, seqs[picked], block_size, device, windows))
        start = stop
    return groups


def _group(
    rows: Rows,
    first: np.ndarray,
    count: int,
    seqs: np.ndarray,
    block_size: int,
    device: torch.device | str,
    windows: bool,
) -> Group:
    row_SM = first[:, None] + np.arange(count)
    index_SM = rows.index[row_SM]
    num_keys = int(index_SM.max()) + 1
    key = np.arange(num_keys)
    known_S11 = rows.known[seqs][:, None, None]
    visible = (key < known_S11) & (key <= index_SM[:, :, None])
    masks_SM = rows.ancestors[row_SM]
    if masks_SM.any():
        node = np.clip(key - known_S11, 0, 63).astype(np.uint64)
        visible |= (key >= known_S11) & ((masks_SM[:, :, None] >> node) & np.uint64(1)).astype(bool)
    slots = rows.tables[seqs][:, key // block_size].astype(np.int64) * block_size + key % block_size
    distance = None
    if windows:
        key_positions = np.broadcast_to(key, (len(seqs), num_keys)).copy()
        for i, s in enumerate(row_SM):
            key_positions[i, rows.index[s]] = rows.positions[s]
        distance = torch.from_numpy(rows.positions[row_SM][:, :, None] - key_positions[:, None, :]).to(device)
    return Group(
        torch.from_numpy(row_SM).to(device),
        torch.from_numpy(np.maximum(slots, 0)).to(device),
        torch.from_numpy(visible).to(device),
        distance,
    )


def paged_attention(
    q_RHD: Tensor, keys_TGD: Tensor, values_TGD: Tensor, groups: list[Group], window: int | None
) -> Tensor:
    """Attention of rows over paged keys and values (T slots), softmax scale 1/sqrt(D). Returns [R, H, D]."""
    out_RHD = torch.empty_like(q_RHD)
    kv_heads = keys_TGD.shape[1]
    for group in groups:
        s, m = group.rows.shape
        mask = group.visible
        if window is not None and group.distance is not None:
            mask = mask & (group.distance < window)
        q = q_RHD[group.rows].transpose(1, 2)
        k = keys_TGD[group.slots].transpose(1, 2)
        v = values_TGD[group.slots].transpose(1, 2)
        if m == 1 and q.shape[1] != kv_heads:
            # Query heads of a group become rows of one product, so that keys are not repeated.
            q = q.reshape(s, kv_heads, -1, q.shape[-1])
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None])
            out_RHD[group.rows[:, 0]] = out.reshape(s, -1, q.shape[-1])
            continue
        grouped = q.shape[1] != kv_heads
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None], enable_gqa=grouped)
        out_RHD[group.rows.reshape(-1)] = out.transpose(1, 2).reshape(s * m, q.shape[1], q.shape[3])
    return out_RHD
