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

    rows [S * M]: their rows. blocks [S * N]: where their keys are, padding pointing at any block.
    visible [S, M, K] with K = N * block size. distance [S, M, K]: row position minus key position, for
    sliding windows; None when no layer has one.
    """

    rows: Tensor
    blocks: Tensor
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
    num_blocks = int(index_SM.max()) // block_size + 1
    key = np.arange(num_blocks * block_size)
    known_S11 = rows.known[seqs][:, None, None]
    visible = (key < known_S11) & (key <= index_SM[:, :, None])
    masks_SM = rows.ancestors[row_SM]
    if masks_SM.any():
        node = np.clip(key - known_S11, 0, 63).astype(np.uint64)
        drafted = (key >= known_S11) & (key < known_S11 + 64)
        visible |= drafted & ((masks_SM[:, :, None] >> node) & np.uint64(1)).astype(bool)
    blocks = np.maximum(rows.tables[seqs, :num_blocks], 0).astype(np.int64)
    distance = None
    if windows:
        key_positions = np.broadcast_to(key, (len(seqs), len(key))).copy()
        for i, s in enumerate(row_SM):
            key_positions[i, rows.index[s]] = rows.positions[s]
        distance = torch.from_numpy(rows.positions[row_SM][:, :, None] - key_positions[:, None, :]).to(device)
    return Group(
        torch.from_numpy(row_SM.reshape(-1)).to(device),
        torch.from_numpy(blocks.reshape(-1)).to(device),
        torch.from_numpy(visible).to(device),
        distance,
    )


def paged_attention(
    q_RHD: Tensor, keys_TGD: Tensor, values_TGD: Tensor, groups: list[Group], window: int | None
) -> Tensor:
    """Attention of rows over paged keys and values (T slots), softmax scale 1/sqrt(D). Returns [R, H, D]."""
    out_RHD = torch.empty_like(q_RHD)
    heads, size = q_RHD.shape[1:]
    kv_heads = keys_TGD.shape[1]
    for group in groups:
        s, m, num_keys = group.visible.shape
        mask = group.visible
        if window is not None and group.distance is not None:
            mask = mask & (group.distance < window)
        k = _gather(keys_TGD, group.blocks, num_keys, s)
        v = _gather(values_TGD, group.blocks, num_keys, s)
        q = q_RHD.index_select(0, group.rows).view(s, m, heads, size)
        if m == 1 and heads != kv_heads:
            # Query heads of a group become rows of one product, so that keys are not repeated.
            out = F.scaled_dot_product_attention(q.view(s, kv_heads, -1, size), k, v, attn_mask=mask[:, None])
        else:
            grouped = heads != kv_heads
            q = q.transpose(1, 2)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None], enable_gqa=grouped)
            out = out.transpose(1, 2)
        out_RHD.index_copy_(0, group.rows, out.reshape(s * m, heads, size))
    return out_RHD


def _gather(pool_TGD: Tensor, blocks: Tensor, num_keys: int, num_seqs: int) -> Tensor:
    """Keys or values of the sequences' blocks, [S, G, K, D]; whole blocks, so that copies are long."""
    kv_heads, size = pool_TGD.shape[1:]
    block_size = num_keys * num_seqs // len(blocks)
    picked = pool_TGD.view(-1, block_size * kv_heads * size).index_select(0, blocks)
    return picked.view(num_seqs, num_keys, kv_heads, size).transpose(1, 2)
