"""Rows to learn from that need no download."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from lightwork.errors import MissingExtraError
from lightwork.learn.data import rows_of
from lightwork.learn.sparse import BSC


def test_patches_of_photographs_have_no_mean_and_a_deviation_of_one() -> None:
    pytest.importorskip("PIL")
    rows = rows_of("photos", BSC, 0)
    assert rows.shape == (4000, 64)
    np.testing.assert_allclose(rows.mean(1), 0, atol=1e-12)
    np.testing.assert_allclose(rows.std(), 1)


def test_without_a_reader_of_photographs_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match="Pillow is not installed"):
        rows_of("photos", BSC, 0)
