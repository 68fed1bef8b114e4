"""When a process is taken for hung: after so many beats without a word, or in one step."""

from __future__ import annotations

import pytest

from lightwork.runtime.heartbeat import BEAT_S, SILENT_BEATS, STEP_BEATS, Heartbeat
from lightwork.runtime.kernel import Kernel


class Watched:
    """A process that answers at once, with the step that it is in; silent: from then on it does not."""

    def __init__(self, *, steps_per_beat: int = 0, computes: bool = True, silent_s: float = 1e9) -> None:
        self.kernel = Kernel()
        self.asked = 0
        self.hung: list[tuple[float, str]] = []
        self._steps_per_beat, self._computes, self._silent_s = steps_per_beat, computes, silent_s
        self.heartbeat = Heartbeat(
            self.kernel, self.ask, lambda why: self.hung.append((self.kernel.now(), why))
        )

    def ask(self) -> None:
        self.asked += 1
        if self.kernel.now() < self._silent_s:
            self.heartbeat.heard()
            self.heartbeat.answered(1 + self.asked * self._steps_per_beat if self._computes else None)

    def run(self, beats: int) -> None:
        async def main() -> None:
            await self.kernel.sleep(beats * BEAT_S)

        self.kernel.run(main())


@pytest.mark.parametrize("watched", [Watched(steps_per_beat=1), Watched(computes=False)])
def test_who_computes_step_after_step_or_nothing_is_well(watched: Watched) -> None:
    watched.run(3 * STEP_BEATS)
    assert not watched.hung
    assert watched.asked >= 3 * STEP_BEATS


def test_who_says_nothing_is_hung_and_told_of_once() -> None:
    watched = Watched(steps_per_beat=1, silent_s=10 * BEAT_S)
    watched.run(STEP_BEATS)
    assert watched.hung == [((10 + SILENT_BEATS) * BEAT_S, "has said nothing for 60 s")]


def test_who_never_leaves_a_step_is_hung_although_it_answers() -> None:
    watched = Watched()
    watched.run(2 * STEP_BEATS)
    assert [why for _, why in watched.hung] == ["has been in one step for 1200 s"]
    assert watched.hung[0][0] >= STEP_BEATS * BEAT_S


def test_nothing_is_asked_after_the_end() -> None:
    watched = Watched(silent_s=0.0)
    watched.run(3)
    asked = watched.asked
    watched.heartbeat.stop()
    watched.heartbeat.stop()
    watched.run(100)
    assert watched.asked == asked
    assert not watched.hung
