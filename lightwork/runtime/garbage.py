"""Python's cyclic garbage collector, told that much of what there is will stay."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

RARELY = 200_000
"""New objects between two looks at the young ones."""


@contextmanager
def rarely() -> Iterator[None]:
    """Within it, what exists already is not looked through, and what is new only now and then.

    A million suspended tasks are not garbage, and to find that out again and again takes most of the time of
    a simulation. What has no cycles is freed at once, as ever.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(RARELY, 50, 1000)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
