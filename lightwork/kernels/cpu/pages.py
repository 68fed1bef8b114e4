"""Where keys and values lie, and how they get there.

Keys of a page lie [D][64], so that a score is one chain over D for 64 keys at once. Values lie [64 keys][64]
for each 64 of D, and [64 keys][16] for each 16 of what is left. In bfloat16 and bytes both lie in pairs,
[D / 2][64][2] and [64 keys / 2][64][2].

D head size
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lightwork.kernels.cpu.compiled import compiled, summing
from lightwork.kernels.cpu.formats import BF16_DOT, F32, INT8_DOT, PAGE
from lightwork.kernels.cpu.primitives import floats, int32s, shorts, signed_bytes
from lightwork.kernels.cpu.rowwise import to_bfloat16


@compiled
def bytes_per_number(t: Any) -> int:
    return 4 if t.kv_format == F32 else 2 if t.kv_format == BF16_DOT else 1


@compiled
def page_of(t: Any, layer: int, page: int, head: int) -> Any:
    """The number of a page of one head among all layers'.

    What a block of tokens holds in all layers lies together, so that memory is first touched as texts grow,
    not in every layer's region at once.
    """
    return (page * t.num_layers + layer) * t.kv_heads + head


@compiled
def store_token(t: Any, layer: int, slot: int, head: int, key: Any, value: Any) -> None:
    """Write one token's key and value [D] of one head at a slot (page * 64 + offset). Both are used up."""
    k, place = slot % PAGE, page_of(t, layer, slot // PAGE, head)
    at_key, at_value = place * t.head_size * PAGE, place * t.padded_head * PAGE
    if t.kv_format == INT8_DOT:
        key_scale, value_scale = _byte_scale(key), _byte_scale(value)
        floats(t.key_scales + 4 * place * PAGE, PAGE)[k] = key_scale
        floats(t.value_scales + 4 * place * PAGE, PAGE)[k] = value_scale
        keys = signed_bytes(t.keys + at_key, t.head_size * PAGE)
        values = signed_bytes(t.values + at_value, t.padded_head * PAGE)
        for d in range(key.shape[0]):
            keys[(d // 2 * PAGE + k) * 2 + d % 2] = np.int8(np.rint(key[d] / key_scale))
            values[value_place(d, k, t.padded_head, True)] = np.int8(np.rint(value[d] / value_scale))
    elif t.kv_format == BF16_DOT:
        size = key.shape[0] + key.shape[0] % 2
        pairs = int32s(t.keys + 2 * at_key, size // 2 * PAGE)
        value_halves = shorts(t.values + 2 * at_value, t.padded_head * PAGE)
        # Rounded where they lie: each takes the first half of its place, and nobody reads them again.
        to_bfloat16(key, shorts(key.ctypes.data, size))
        to_bfloat16(value, shorts(value.ctypes.data, size))
        key_pairs, rounded = int32s(key.ctypes.data, size // 2), shorts(value.ctypes.data, size)
        for j in range(size // 2):
            pairs[j * PAGE + k] = key_pairs[j]
        d = 0
        while d < value.shape[0]:
            count = min(64 if t.padded_head - d >= 64 else 16, value.shape[0] - d)
            first = value_place(d, k, t.padded_head, True)
            for j in range(count):
                value_halves[first + 2 * j] = rounded[d + j]
            d += count
    else:
        wide = floats(t.keys + 4 * at_key, t.head_size * PAGE)
        value_wide = floats(t.values + 4 * at_value, t.padded_head * PAGE)
        for d in range(key.shape[0]):
            wide[d * PAGE + k] = key[d]
            value_wide[value_place(d, k, t.padded_head, False)] = value[d]


@compiled
def value_place(d: int, k: int, width: int, pairs: bool) -> int:
    """Where number d of the value of token k of a page is, in its head of padded size `width`."""
    block, wide = d // 64 * 64, 64
    if block + 64 > width:
        block, wide = d // 16 * 16, 16
    if pairs:
        return block * PAGE + (k // 2 * wide + d - block) * 2 + k % 2
    return block * PAGE + k * wide + d - block


@summing
def _byte_scale(x: Any) -> Any:
    most = np.float32(0)
    for d in range(x.shape[0]):
        most = max(most, abs(x[d]))
    return most / np.float32(127) if most > 0 else np.float32(1)
