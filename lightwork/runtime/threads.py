"""The real world of one rank whose effects block, and whose children are threads."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from lightwork.runtime.drive import drive
from lightwork.runtime.effects import Compute, Effect, Recv, Send, Signal, Sleep, Spawn, Wait


class ThreadWorld:
    """Carries out Compute, Send, Recv, Signal, Wait, Sleep and Spawn, each on the thread of its coroutine.

    send(to, x), recv(source): how messages travel. failed: told of an error in a child.
    """

    def __init__(
        self,
        send: Callable[[int, Any], None],
        recv: Callable[[int], Any],
        failed: Callable[[BaseException], object],
    ) -> None:
        self._failed = failed
        self._counters: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._do: dict[type, Callable[[Any], Any]] = {
            Compute: lambda effect: effect.fn(*effect.args),
            Send: lambda effect: send(effect.to, effect.x),
            Recv: lambda effect: recv(effect.source),
            Signal: self._signal,
            Wait: self._wait,
            Sleep: lambda effect: time.sleep(effect.seconds),
            Spawn: self._spawn,
        }

    def run(self, coro: Coroutine[Any, Any, Any]) -> Any:
        """Drive a strategy to its end on this thread; returns its value."""
        return drive(coro, self.perform)

    def perform(self, effect: Effect) -> Any:
        return self._do[type(effect)](effect)

    def _signal(self, effect: Signal) -> None:
        with self._changed:
            self._counters[effect.name] += effect.count
            self._changed.notify_all()

    def _wait(self, effect: Wait) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._counters[effect.name] >= effect.count)

    def _spawn(self, effect: Spawn) -> None:
        name = f"lightwork-{effect.name}"
        threading.Thread(target=self._child, args=(effect.coro,), name=name, daemon=True).start()

    def _child(self, coro: Coroutine[Any, Any, Any]) -> None:
        try:
            self.run(coro)
        except BaseException as error:
            self._failed(error)
