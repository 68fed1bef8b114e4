"""Arrays of a step on the device, at addresses that stay, so that a captured graph can read them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_TYPES = {np.dtype(np.int32): torch.int32, np.dtype(np.int64): torch.int64, np.dtype(float): torch.float64}


class Mirror:
    """Named flat buffers. version: counts the times that one had to grow, and so moved."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.version = 0
        self._host: dict[str, Tensor] = {}
        self._device: dict[str, Tensor] = {}
        self._copied: torch.cuda.Event | None = None

    def put(self, name: str, array: NDArray[np.generic]) -> Tensor:
        """Copy an array of int32, int64 or float64; returns its buffer, of which it fills the start."""
        flat = array.reshape(-1)
        have = self._device.get(name)
        if have is None or len(have) < len(flat):
            self.reserve(name, len(flat), _TYPES[array.dtype])
            have = self._device[name]
        if self.device.type == "cpu":
            have[: len(flat)] = torch.from_numpy(flat)
            return have
        staged = self._host[name][: len(flat)]
        staged.numpy()[:] = flat
        have[: len(flat)].copy_(staged, non_blocking=True)
        return have

    def reserve(self, name: str, size: int, dtype: torch.dtype) -> Tensor:
        """A buffer of at least `size` elements, what is in it unspecified."""
        have = self._device.get(name)
        if have is None or len(have) < size:
            capacity = 1 << max(6, (size - 1).bit_length())
            have = self._device[name] = torch.zeros(capacity, dtype=dtype, device=self.device)
            if self.device.type == "cuda":
                self._host[name] = torch.zeros(capacity, dtype=dtype, pin_memory=True)
            self.version += 1
        return have

    def begin(self) -> None:
        """Wait until the copies of the step before have left the host, so that it can be written again."""
        if self._copied is not None:
            self._copied.synchronize()

    def end(self) -> None:
        """Mark the last copy of a step."""
        if self.device.type == "cuda":
            self._copied = self._copied or torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()
