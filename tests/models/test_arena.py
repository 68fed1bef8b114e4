"""Memory of keys and values that is given back to the system."""

from __future__ import annotations

import os

import numpy as np
import pytest

from lightwork.models.arena import ALIGNED, arrays, discard


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_what_is_discarded_reads_as_zeros_and_its_neighbours_stay(shared: bool) -> None:
    """Pages that hold something else as well are kept whole."""
    file = os.memfd_create("test") if shared else None
    shapes = [((3, ALIGNED), np.uint8), ((5, ALIGNED + 8), np.uint8)]
    for numbers in arrays(shapes, file):
        numbers[:] = 7
        before = numbers.copy()
        discard(numbers[1:3])
        np.testing.assert_array_equal(numbers[:1], before[:1])
        np.testing.assert_array_equal(numbers[3:], before[3:])
        gone = int((numbers[1:3] == 0).sum())
        assert ALIGNED <= gone <= numbers[1:3].nbytes
        assert gone % ALIGNED == 0
        numbers[1:3] = 9
        assert (numbers[1:3] == 9).all()
    if file is not None:
        assert os.fstat(file).st_blocks * 512 >= 3 * ALIGNED
        os.close(file)


def test_less_than_a_page_is_kept() -> None:
    (numbers,) = arrays([((4, 100), np.uint8)])
    numbers[:] = 7
    discard(numbers[1:3])
    assert (numbers == 7).all()
