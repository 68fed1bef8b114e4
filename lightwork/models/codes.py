"""A quantised matrix in the one form that kernels take, whatever file it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Codes:
    """A matrix of N outputs and K inputs, w[n, k] = scales[n, g] * codes[n, k] + offsets[n, g].

    g = k // group. codes: uint8 [N, K], each below 2**bits. scales, offsets: float32 [N, K / group]. group:
    inputs that share a scale; it divides K. A symmetric format has offsets = -2**(bits - 1) * scales.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    offsets: NDArray[np.float32]
    bits: Literal[4, 8]
    group: int

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)"""
        outputs, inputs = self.codes.shape
        return outputs, inputs

    @property
    def nbytes(self) -> int:
        """Bytes of memory these arrays hold; a code takes one byte here, of 4 bits too."""
        return self.codes.nbytes + self.scales.nbytes + self.offsets.nbytes

    def rows(self, index: slice | NDArray[np.intp]) -> Codes:
        """Some of the outputs, in the order of the index."""
        return Codes(
            codes=self.codes[index],
            scales=self.scales[index],
            offsets=self.offsets[index],
            bits=self.bits,
            group=self.group,
        )

    def middles(self) -> NDArray[np.float64]:
        """What the code 2**(bits - 1) stands for, exactly [N, K / group]: 0 in a symmetric format."""
        with np.errstate(invalid="ignore"):  # damaged files hold infinite scales
            return self.offsets + 2.0 ** (self.bits - 1) * self.scales.astype(np.float64)

    def dequantised(self) -> NDArray[np.float32]:
        """The matrix itself, float32 [N, K]."""
        n, k = self.shape
        grouped = self.codes.reshape(n, k // self.group, self.group).astype(np.float32)
        grouped *= self.scales[:, :, None]
        grouped += self.offsets[:, :, None]
        return grouped.reshape(n, k)
