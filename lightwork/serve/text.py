"""From tokens to text while they arrive: incremental decoding and stop strings."""

from __future__ import annotations

from collections.abc import Sequence

from lightwork.decode.sampling import Pick
from lightwork.models.tokenizer import Tokenizer


class TextOutput:
    """The text of one continuation: behind its prompt, it is what tokens were encoded from.

    Text is handed out as soon as it is certain: a half character, or what may be the beginning of a stop
    string, is held back. A stop string ends the text and is not part of it. found: that stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], hidden: frozenset[int]) -> None:
        self._decoder = tokenizer.stream(behind=True)
        self._stop = tuple(s for s in stop if s)
        self._hidden = hidden
        self._held = ""
        self.found = ""

    def push(self, picks: Sequence[Pick]) -> tuple[str, int | None]:
        """Text that is certain now, and, if a stop string was completed, how many of the picks stand."""
        ready = ""
        for i, pick in enumerate(picks):
            if pick.token in self._hidden:
                continue
            self._held += self._decoder.push(pick.token)
            at = self._find_stop()
            if at is not None:
                ready += self._held[:at]
                self._held = ""
                return ready, i + 1
            certain = len(self._held) - self._overlap()
            ready += self._held[:certain]
            self._held = self._held[certain:]
        return ready, None

    def flush(self) -> str:
        """What was held back, when no more tokens come."""
        rest = self._held + self._decoder.flush()
        self._held = ""
        return rest

    def _find_stop(self) -> int | None:
        found = [(at, s) for s in self._stop if (at := self._held.find(s)) >= 0]
        if not found:
            return None
        at, self.found = min(found)
        return at

    def _overlap(self) -> int:
        """Length of the longest end of the held text that may begin a stop string."""
        for n in range(min(len(self._held), max(map(len, self._stop), default=0)), 0, -1):
            if any(s.startswith(self._held[-n:]) for s in self._stop):
                return n
        return 0
