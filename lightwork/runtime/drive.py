"""The loop of a real backend whose effects block: no event loop, no futures."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def drive(coro: Coroutine[Any, Any, T], perform: Callable[[Any], Any]) -> T:
    """Run a strategy to its end; perform(effect) carries each effect out and returns its result.

    An error of perform is raised in the strategy, where it waits; what the strategy raises is raised here.
    """
    send = coro.send
    try:
        effect = send(None)
        while True:
            try:
                value = perform(effect)
            except Exception as error:
                effect = coro.throw(error)
            else:
                effect = send(value)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        coro.close()
