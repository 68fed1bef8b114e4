"""The real world of one rank whose effects block, and whose children are threads."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from lightwork.runtime.drive import drive
from lightwork.runtime.effects import Compute, Effect, Signal, Sleep, Spawn, Wait


class ThreadWorld:
    """Carries out effects, each on the thread of its coroutine.

    do: what else than Compute, Signal, Wait, Sleep and Spawn it can, by the class of the effect. failed: told
    of an error in a child; who waits from then on is told as well.
    """

    def __init__(
        self,
        do: Mapping[type, Callable[[Any], Any]],
        failed: Callable[[BaseException], object] = lambda error: None,
    ) -> None:
        self._failed = failed
        self._error: BaseException | None = None
        self._counters: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._do: dict[type, Callable[[Any], Any]] = {
            Compute: lambda effect: effect.fn(*effect.args),
            Signal: self._signal,
            Wait: self._wait,
            Sleep: lambda effect: time.sleep(effect.seconds),
            Spawn: self._spawn,
            **do,
        }

    def run(self, coro: Coroutine[Any, Any, Any]) -> Any:
        """Drive a strategy to its end on this thread; returns its value."""
        return drive(coro, self.perform)

    def perform(self, effect: Effect) -> Any:
        return self._do[type(effect)](effect)

    def fail(self, error: BaseException) -> None:
        """Whoever waits, now or later, gets this error."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def _signal(self, effect: Signal) -> None:
        with self._changed:
            self._counters[effect.name] += effect.count
            self._changed.notify_all()

    def _wait(self, effect: Wait) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._error or self._counters[effect.name] >= effect.count)
            if self._error is not None:
                raise self._error

    def _spawn(self, effect: Spawn) -> None:
        name = f"lightwork-{effect.name}"
        threading.Thread(target=self._child, args=(effect.coro,), name=name, daemon=True).start()

    def _child(self, coro: Coroutine[Any, Any, Any]) -> None:
        try:
            self.run(coro)
        except BaseException as error:
            self.fail(error)
            self._failed(error)
