"""The real backend of strategies whose children compute side by side: threads, on a GPU with a stream each.

Effects block. What a child signals has been computed when another goes on after waiting for it: on a GPU a
thread waits only until that has been queued, and its stream until it is done.
"""

from __future__ import annotations

import os
from collections.abc import Coroutine, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from queue import SimpleQueue
from threading import Condition
from typing import Any

import torch

from lightwork.errors import SpecError
from lightwork.runtime.drive import drive
from lightwork.runtime.effects import Compute, Effect, Signal, Spawn, Wait


class _Child(Effect):
    """A child that runs; awaiting it gives its value."""

    __slots__ = ("future",)

    def __init__(self, future: Future[Any]) -> None:
        self.future = future

    def __await__(self) -> Generator[Effect, Any, Any]:
        return (yield self)


class Lanes:
    """Room for `num` children at a time.

    device: "cpu", or a GPU. cores: those of a CPU that the children are kept on, evenly many each; none: they
    run where they like, on as many threads as torch uses.
    """

    def __init__(self, num: int, device: torch.device | str = "cpu", cores: Sequence[int] = ()) -> None:
        self.device = torch.device(device)
        self._places: SimpleQueue[Sequence[int]] = SimpleQueue()
        for i in range(num):
            self._places.put(cores[i * len(cores) // num : (i + 1) * len(cores) // num])
        self._pool = ThreadPoolExecutor(num, "lane", initializer=self._settle)
        self._streams: SimpleQueue[torch.cuda.Stream] = SimpleQueue()
        if self._on_gpu:
            for _ in range(num):
                self._streams.put(torch.cuda.Stream(self.device))  # type: ignore[no-untyped-call]
        self._changed = Condition()
        self._begin()

    @property
    def _on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def run(self, coro: Coroutine[Any, Any, Any]) -> Any:
        """Drive a strategy to its end. Raises what the first of its children raised."""
        self._begin()
        return drive(coro, self._perform)

    def close(self) -> None:
        self._pool.shutdown()

    def _begin(self) -> None:
        self._counters: dict[str, int] = {}
        self._queued: dict[str, list[torch.cuda.Event]] = {}
        self._failed: BaseException | None = None
        self._inference = torch.is_inference_mode_enabled()
        self._begun = self._mark()

    def _settle(self) -> None:
        """Once on each thread."""
        cores = self._places.get()
        if cores:
            torch.set_num_threads(len(cores))
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, cores)

    def _perform(self, effect: Any) -> Any:
        match effect:
            case Compute(fn=fn, args=args):
                return fn(*args) if fn is not None else None
            case Wait():
                return self._wait(effect)
            case Signal():
                return self._signal(effect)
            case Spawn(coro=coro):
                return _Child(self._pool.submit(self._drive, coro))
            case _Child(future=future):
                value, ended = future.result()
                self._follow(ended)
                return value
        raise SpecError(f"{effect!r} is not for lanes", expected="Compute, Spawn, Wait, Signal")

    def _drive(self, coro: Coroutine[Any, Any, Any]) -> tuple[Any, torch.cuda.Event | None]:
        """The life of a child: its value, and the end of what it has queued."""
        try:
            with ExitStack() as stack:
                stack.enter_context(torch.inference_mode(self._inference))
                if self._on_gpu:
                    stream = self._streams.get()
                    stack.callback(self._streams.put, stream)
                    stack.enter_context(torch.cuda.stream(stream))
                    self._follow(self._begun)
                return drive(coro, self._perform), self._mark()
        except BaseException as error:
            with self._changed:
                self._failed = self._failed or error
                self._changed.notify_all()
            raise

    def _wait(self, effect: Wait) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: self._failed is not None or self._counters.get(effect.name, 0) >= effect.count
            )
            if self._failed is not None:
                raise self._failed
            queued = [*self._queued.get(effect.name, ())]
        for event in queued:
            self._follow(event)

    def _signal(self, effect: Signal) -> None:
        mark = self._mark()
        with self._changed:
            self._counters[effect.name] = self._counters.get(effect.name, 0) + effect.count
            if mark is not None:
                self._queued.setdefault(effect.name, []).append(mark)
            self._changed.notify_all()

    def _mark(self) -> torch.cuda.Event | None:
        """Where the current stream is; None on a CPU, where what has returned is done."""
        if not self._on_gpu:
            return None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _follow(self, mark: torch.cuda.Event | None) -> None:
        """Let the current stream wait for a mark."""
        if mark is not None:
            torch.cuda.current_stream(self.device).wait_event(mark)
