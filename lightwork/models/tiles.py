"""Rows computed so many at a time, so that the bits of one do not depend on how many others there are.

R rows  d hidden
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def in_tiles(compute: Callable[[Tensor], Tensor], x_Rd: Tensor, tile: int) -> Tensor:
    """compute(x), `tile` rows at a time, the last ones padded; 0: all at once.

    Products of another number of rows may add in another order; those of one shape do not.
    """
    if not tile or len(x_Rd) == tile:
        return compute(x_Rd)
    padded = F.pad(x_Rd, (0, 0, 0, -len(x_Rd) % tile))
    return torch.cat([compute(part) for part in torch.split(padded, tile)])[: len(x_Rd)]
