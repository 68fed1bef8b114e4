"""Whether a process that serves still gets on: one that is stopped, or waits for ever, ends no pipe.

It is asked at every beat which step it computes, and answers beside the step. Beats are counted, not seconds:
when this process, or the whole machine, was what stood still, one beat has passed, and not a hundred.
"""

from __future__ import annotations

from collections.abc import Callable

from lightwork.runtime.kernel import Kernel

BEAT_S = 5.0
SILENT_BEATS = 12
"""So many without a word from it, and it is taken for hung: a minute, which a slow link may need, too."""
STEP_BEATS = 240
"""So many in one step: 20 minutes, which no step takes that somebody waits for."""


class Heartbeat:
    """Of one process. ask(): send it the question. hung(why): called once, when it is taken for hung."""

    def __init__(self, kernel: Kernel, ask: Callable[[], object], hung: Callable[[str], object]) -> None:
        self._kernel = kernel
        self._ask = ask
        self._hung = hung
        self._silent = self._same = 0
        self._step: int | None = None
        self._timer = kernel.at(kernel.now(), self._beat)
        self._stopped = False

    def heard(self) -> None:
        """It said something."""
        self._silent = 0

    def answered(self, step: int | None) -> None:
        """It is in this step; None: in none."""
        self._same = self._same + 1 if step is not None and step == self._step else 0
        self._step = step

    def stop(self) -> None:
        """Ask no more. No-op if it has stopped."""
        if not self._stopped:
            self._stopped = True
            self._kernel.drop(self._timer)

    def _beat(self) -> None:
        if self._silent < SILENT_BEATS and self._same < STEP_BEATS:
            self._silent += 1
            self._ask()
            self._timer = self._kernel.at(self._kernel.now() + BEAT_S, self._beat)
            return
        self._stopped = True
        silent = self._silent >= SILENT_BEATS
        for_s = BEAT_S * (SILENT_BEATS if silent else STEP_BEATS)
        self._hung(f"has {'said nothing' if silent else 'been in one step'} for {for_s:g} s")
