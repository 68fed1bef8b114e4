"""The generation rows follow the host, and only because of it."""

from __future__ import annotations

import pytest

from lightwork.claims.hopper import HOST_S_PER_LAYER, ROWS, tokens_per_s


def test_the_held_out_run_gives_about_a_millisecond_per_layer():
    assert 0.5e-3 < HOST_S_PER_LAYER < 2e-3


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r.model} {r.place} {r.dtype}")
def test_the_device_alone_would_be_faster_than_published(row):
    alone = tokens_per_s(row.model, row.place, row.dtype, 0.0)
    with_host = tokens_per_s(row.model, row.place, row.dtype, HOST_S_PER_LAYER)
    assert alone > 1.25 * row.published
    assert with_host < alone


def test_a_fast_host_leaves_the_device():
    """A host that is never the slower one costs nothing."""
    alone = tokens_per_s("llama-2-13b", "sim:a100", "bfloat16", 0.0)
    assert tokens_per_s("llama-2-13b", "sim:a100", "bfloat16", 1e-5) == alone
