"""One record of what happened, or would have: spans, and whoever watches them come.

Everything that reports (progress, Prometheus, Perfetto, the page, claims, diagnosis) observes this one
stream.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from rich.console import Group

    from lightwork.shown import Table


class Span(NamedTuple):
    """Something that took from start_s to end_s; equal for an instant.

    A NamedTuple because millions are made in a simulation and it is built three times as fast as a frozen
    dataclass.

    rank: who did it (a rank, an engine, a stream). kind: what sort of thing ("compute", "send", "step", ...).
    bytes: moved. peer: the other rank of a message. args: whatever else its readers need.
    """

    rank: str
    kind: str
    name: str
    start_s: float
    end_s: float
    bytes: int = 0
    peer: str = ""
    args: Mapping[str, Any] | None = None


class Observer(Protocol):
    """Is told every span when it ends."""

    def on(self, span: Span) -> None: ...


class Trace:
    """Spans in order of their end. label: the world they are of ("real: cpu", "simulated: sim:h100").

    keep: how many of the latest spans are held; None holds all. calls: whether each message to an actor is a
    span, too. about: what was run, in plain values, for those who read the trace later.
    """

    def __init__(
        self,
        label: str,
        *,
        keep: int | None = None,
        calls: bool = True,
        observers: Iterable[Observer] = (),
    ) -> None:
        self.label = label
        self.calls = calls
        self.about: dict[str, Any] = {}
        self.spans: deque[Span] | list[Span] = [] if keep is None else deque(maxlen=keep)
        self.observers = list(observers)

    def add(self, span: Span) -> None:
        self.spans.append(span)
        for observer in self.observers:
            observer.on(span)

    def table(self) -> Table:
        """What each rank did, and a picture of when."""
        from lightwork.runtime.timeline import lanes, lanes_table

        return lanes_table(f"{self.label}: {len(self.spans)} spans", lanes(self.spans))

    def __rich__(self) -> Group:
        return self.table().__rich__()

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def hash(self) -> str:
        """Equal for equal spans, times included."""
        digest = hashlib.sha256()
        for span in self.spans:
            digest.update(repr(span).encode())
        return digest.hexdigest()
