"""The block formats of GGUF, read into `Codes` and written.

A row is cut into blocks. Q8_0 and Q4_0: 32 values under one float16 scale, symmetric. Q4_K and Q6_K: 256
values in groups of 32 and 16, whose own scales (and minima) are small integers under the block's float16.

N rows  B blocks of a row
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightwork.models.codes import Codes

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How a tensor is stored. block: values of a block. decode: uint8 [N, B, block_bytes] to Codes.

    encode: float32 [N, B, block] to uint8 [N, B, block_bytes]. A format without decode is plain numbers.
    """

    name: str
    block: int
    block_bytes: int
    decode: Callable[[Bytes], Codes] | None = None
    encode: Callable[[Floats], Bytes] | None = None


def _half(block: Bytes, start: int) -> Floats:
    """The float16 at a byte of each block, [N, B, 1]."""
    return np.ascontiguousarray(block[..., start : start + 2]).view("<f2").astype(np.float32)


def _codes(values: Bytes, scales: Floats, offsets: Floats, bits: int, group: int) -> Codes:
    """values [N, B, ...] of one block in order; scales, offsets [N, B, groups of a block]."""
    n = len(values)
    assert bits in (4, 8)
    return Codes(
        codes=values.reshape(n, -1),
        scales=np.ascontiguousarray(scales.reshape(n, -1)),
        offsets=np.ascontiguousarray(offsets.reshape(n, -1)),
        bits=4 if bits == 4 else 8,
        group=group,
    )


def decode_q8_0(block: Bytes) -> Codes:
    scale = _half(block, 0)
    return _codes(block[..., 2:] ^ np.uint8(128), scale, -128 * scale, 8, 32)


def decode_q4_0(block: Bytes) -> Codes:
    """Byte i holds value i in its low half and value i + 16 in its high half."""
    scale = _half(block, 0)
    return _codes(_nibbles(block[..., 2:]), scale, -8 * scale, 4, 32)


def decode_q4_k(block: Bytes) -> Codes:
    """Eight groups of 32. A byte holds a value of an even group and, in its high half, one of the next."""
    scales, minima = _unpack_6_bits(block[..., 4:16])
    values = _nibbles(block[..., 16:].reshape(*block.shape[:2], 4, 32))
    return _codes(values, _half(block, 0) * scales, -_half(block, 2) * minima, 4, 32)


def decode_q6_k(block: Bytes) -> Codes:
    """Two halves of 128: 64 bytes of low nibbles, and 32 bytes with the two high bits of four values each."""
    n, b = block.shape[:2]
    low = _nibbles(block[..., :128].reshape(n, b, 2, 64)).reshape(n, b, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = (block[..., 128:192].reshape(n, b, 2, 1, 32) >> shifts) & np.uint8(3)
    scales = _half(block, 208) * np.ascontiguousarray(block[..., 192:208]).view(np.int8)
    # A code of 32 is zero: counted from 128, as 8-bit codes do, the format is symmetric.
    return _codes((low | (high << np.uint8(4))) + np.uint8(96), scales, -128 * scales, 8, 16)


def _nibbles(packed: Bytes) -> Bytes:
    """Low halves of the last axis, then high halves."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _unpack_6_bits(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Eight scales and eight minima of 6 bits from 12 bytes [N, B, 12].

    Bytes 0-3 and 4-7: scales and minima 0-3, and in their top bits the top bits of 4-7, whose low nibbles
    share bytes 8-11.
    """
    scale, low, rest = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scales = np.concatenate([scale & 63, (rest & 15) | ((scale >> 6) << 4)], axis=-1)
    minima = np.concatenate([low & 63, (rest >> 4) | ((low >> 6) << 4)], axis=-1)
    return scales, minima


def encode_q8_0(x: Floats) -> Bytes:
    scale = np.abs(x).max(-1, keepdims=True) / np.float32(127)
    scaled = x * _inverse(scale)
    codes = np.copysign(np.floor(np.abs(scaled) + 0.5), scaled).astype(np.int8)
    return np.concatenate([scale.astype("<f2").view(np.uint8), codes.view(np.uint8)], axis=-1)


def encode_q4_0(x: Floats) -> Bytes:
    """The value of largest magnitude becomes the code 0, which is -8: the range has no +8."""
    extreme = np.take_along_axis(x, np.abs(x).argmax(-1)[..., None], -1)
    scale = extreme / np.float32(-8)
    codes = np.clip(np.floor(x * _inverse(scale) + np.float32(8.5)), 0, 15).astype(np.uint8)
    packed = codes[..., :16] | (codes[..., 16:] << 4)
    return np.concatenate([scale.astype("<f2").view(np.uint8), packed], axis=-1)


def encode_q4_k(x: Floats) -> Bytes:
    """Each group from its least value (or 0) to its greatest; no search for better scales."""
    groups = x.reshape(*x.shape[:2], 8, 32)
    least = np.minimum(groups.min(-1), 0)
    scale, minimum = (groups.max(-1) - least) / 15, -least
    unit = (np.stack([scale.max(-1), minimum.max(-1)], -1) / 63).astype("<f2")  # [N, B, 2]
    d, dmin = unit.astype(np.float32)[..., :1], unit.astype(np.float32)[..., 1:]
    scales = np.clip(np.rint(scale * _inverse(d)), 0, 63).astype(np.uint8)
    minima = np.clip(np.rint(minimum * _inverse(dmin)), 0, 63).astype(np.uint8)
    shifted = (groups + (dmin * minima)[..., None]) * _inverse(d * scales)[..., None]
    codes = np.clip(np.rint(shifted), 0, 15).astype(np.uint8)
    packed = (codes[..., ::2, :] | (codes[..., 1::2, :] << 4)).reshape(*x.shape[:2], 128)
    return np.concatenate([unit.view(np.uint8), _pack_6_bits(scales, minima), packed], axis=-1)


def _pack_6_bits(scales: Bytes, minima: Bytes) -> Bytes:
    s, m = scales, minima
    first = s[..., :4] | ((s[..., 4:] >> 4) << 6)
    second = m[..., :4] | ((m[..., 4:] >> 4) << 6)
    return np.concatenate([first, second, (s[..., 4:] & 15) | ((m[..., 4:] & 15) << 4)], axis=-1)


def _inverse(x: Floats) -> Floats:
    """1 / x, and 0 where x is 0."""
    return np.divide(1, x, out=np.zeros_like(x), where=x != 0)


FORMATS = {
    0: Format(name="F32", block=1, block_bytes=4),
    1: Format(name="F16", block=1, block_bytes=2),
    30: Format(name="BF16", block=1, block_bytes=2),
    8: Format(name="Q8_0", block=32, block_bytes=34, decode=decode_q8_0, encode=encode_q8_0),
    2: Format(name="Q4_0", block=32, block_bytes=18, decode=decode_q4_0, encode=encode_q4_0),
    12: Format(name="Q4_K", block=256, block_bytes=144, decode=decode_q4_k, encode=encode_q4_k),
    14: Format(name="Q6_K", block=256, block_bytes=210, decode=decode_q6_k),
}
"""By the number that stands for them in files. Q6_K: files called Q4_0 and Q4_K_M hold some tensors in it."""

TYPE_NAMES = {i: f.name for i, f in FORMATS.items()} | {
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    13: "Q5_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}
