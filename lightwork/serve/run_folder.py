"""A run in a folder, whole enough to be run again: what was planned, what came, and what happened.

    plan.toml      the plan as `serve` reads it, derived values included
    events.jsonl   a header, then each span in the order in which it was told; behind the arrival of a request
                   what it asked, before the end of one that was given up that it was, behind an end its text
    metrics.json   the run in numbers
    trace.json     the same spans as a Chrome trace

Events are written while they happen, so a run that was killed has those until then. Numbers are written so
that they are read back as they were, to the last bit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, get_args, get_origin, get_type_hints

from lightwork import __version__
from lightwork.errors import LightworkError, SpecError
from lightwork.home import save
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.perfetto import read_chrome_trace, write_chrome_trace
from lightwork.runtime.trace import Observer, Span, Trace
from lightwork.serve.metrics import Meter
from lightwork.serve.plan_file import plan_of, plan_text
from lightwork.serve.sequence import Request
from lightwork.serve.sequence import Sequence as Seq

EVENTS, PLAN, METRICS, TRACE = "events.jsonl", "plan.toml", "metrics.json", "trace.json"
DECIDED = ("arrive", "admit", "preempt", "finish", "step")
"""Spans that say what an engine decided; what else it tells is how long something took."""
MAX_BYTES = 1 << 32


class Served(Protocol):
    """Who served: an engine, or several."""

    @property
    def kernel(self) -> Kernel: ...


class Came(NamedTuple):
    """A request (of the sequences ids), or the end of one that was given up (request None).

    at_s: when. after: decisions told before it. begun: steps begun before it. stop: strings that end its
    text.
    """

    at_s: float
    after: int
    begun: int
    ids: tuple[int, ...]
    request: Request | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A run as it was kept. texts: output tokens by sequence, and why it ended."""

    trace: Trace
    seed: int
    came: Sequence[Came]
    texts: dict[int, tuple[str, tuple[int, ...]]]


class EventsFile:
    """The events of a run, written as they come: an observer of its spans.

    head: what of the run is known before. flushed: after each line; else a run that is killed may lose some.
    A disk that fills up ends the record, not the run; `close` raises what went wrong.
    """

    def __init__(self, folder: Path, label: str, head: dict[str, Any], *, flushed: bool = True) -> None:
        """Raises LightworkError for a folder that holds something, or cannot be made."""
        new_folder(folder)
        self._path = folder / EVENTS
        self._failed: OSError | None = None
        try:
            self._file: Any = self._path.open("w", encoding="utf-8", buffering=1 if flushed else -1)
        except OSError as error:
            raise _unwritten(folder, error) from error
        self.write({"lightwork": __version__, "label": label} | head)

    def on(self, span: Span) -> None:
        self.write({"span": list(span)})

    def write(self, line: dict[str, Any]) -> None:
        if self._failed is None:
            try:
                self._file.write(to_line(line) + "\n")
            except OSError as error:
                self._failed = error

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            self._failed = self._failed or error
        if self._failed is not None:
            raise _unwritten(self._path, self._failed)


@dataclass(slots=True, eq=False)
class Recorder:
    """An observer that writes a run folder, whole when the block that it is for has ended.

    `close` raises what went wrong when events were written.
    """

    folder: Path
    served: Served
    trace: Trace
    _seqs: dict[int, Seq] = field(default_factory=dict)
    _meter: Meter = field(default_factory=Meter)
    _events: EventsFile = field(init=False)

    def __post_init__(self) -> None:
        """Raises LightworkError for a folder that holds something, or cannot be made."""
        head = {"seed": self.served.kernel.seed, "about": self.trace.about}
        self._events = EventsFile(self.folder, self.trace.label, head)
        plan = plan_text(plan_of(self.trace.about), f"lightwork {__version__}, {self.trace.label}")
        save(self.folder / PLAN, lambda part: part.write_text(plan, encoding="utf-8"))
        self.trace.observers.append(self)

    def took(self, seqs: Sequence[Seq], stop: Sequence[str] = ()) -> None:
        """A request came, whose sequences these are; told right after its arrival was."""
        self._seqs.update((seq.id, seq) for seq in seqs)
        asked = {"request": asdict(seqs[0].request), "ids": [seq.id for seq in seqs], "stop": list(stop)}
        self._events.write(asked | {"at_s": seqs[0].arrived_s, "begun": begun(self.served)})

    def on(self, span: Span) -> None:
        self._meter.on(span)
        ended = self._seqs.pop(int(span.name), None) if span.kind == "finish" else None
        if ended is not None and ended.finished == "cancelled":
            self._events.write({"cancel": ended.id, "at_s": span.end_s, "begun": begun(self.served)})
        self._events.on(span)
        if ended is not None:
            tokens = ended.tokens[ended.prompt_len :]
            self._events.write({"text": ended.id, "reason": ended.finished, "tokens": tokens})

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write what is of the whole run. Raises LightworkError if something could not be written."""
        if self in self.trace.observers:
            self.trace.observers.remove(self)
        self._events.close()
        simulated = self.trace.about["on"].startswith("sim:")
        figures = json.dumps(self._meter.summary(simulated=simulated).to_dict(), indent=1) + "\n"
        save(self.folder / METRICS, lambda part: part.write_text(figures, encoding="utf-8"))
        write_chrome_trace(self.folder / TRACE, [self.trace])


def new_folder(folder: Path) -> None:
    """Make a folder for a run. Raises LightworkError for one that holds something, or cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        full = any(folder.iterdir())
    except OSError as error:
        raise _unwritten(folder, error) from error
    if full:
        raise LightworkError(
            f"{folder} holds files already", expected="a new folder for each run", fix=f"--trace {folder}-2"
        )


def begun(served: Any) -> int:
    """Steps that an engine has begun, or engines of this process together."""
    return sum(getattr(engine, "steps", 0) for engine in getattr(served, "engines", [served]))


def to_line(value: object) -> str:
    """A value as one line of events.jsonl."""
    return json.dumps(value, separators=(",", ":"), default=_plain)


def _plain(value: Any) -> Any:
    """What json does not know: sets in order, numbers of numpy. Anything else could not be read back."""
    if isinstance(value, frozenset):
        return sorted(value)
    if hasattr(value, "item"):
        return value.item()
    raise LightworkError(
        f"{value!r:.60} cannot be kept in a run folder",
        expected="requests of plain values",
        fix="name a file.json instead: a trace keeps no requests",
    )


def _unwritten(place: Path, error: OSError) -> LightworkError:
    return LightworkError(
        f"{place} cannot be written: {error.strerror or error}",
        expected="a folder that may be written to, with room",
        fix="make room there, or name another place",
    )


def trace_place(path: str | None) -> tuple[Path | None, Path | None]:
    """What somebody meant who names a place for a trace: a file (it ends in .json), or a run folder."""
    if path is None:
        return None, None
    return (Path(path), None) if path.endswith(".json") else (None, Path(path))


# -- reading


def read_traces(path: Path) -> list[Trace]:
    """The runs of a Chrome trace, or the one of a run folder. Raises SpecError if it is neither."""
    return [read_run(path).trace] if path.is_dir() else read_chrome_trace(path)


def read_run(folder: Path) -> Recorded:
    """Raises SpecError if this is no run folder."""
    with _lines(folder) as lines:
        return _read(lines)


def read_head(folder: Path) -> Trace:
    """Of a run folder: label and about, no spans. Raises SpecError if it is none."""
    with _lines(folder) as lines:
        return _head(lines)[0]


def read_spans(folder: Path, observer: Observer) -> None:
    """Tell an observer the spans of a run folder, which may be too large to be held. Raises SpecError."""
    with _lines(folder) as lines:
        _head(lines)
        for told in _whole(lines):
            if "span" in told:
                observer.on(Span(*told["span"]))


@contextmanager
def _lines(folder: Path) -> Iterator[Iterator[str]]:
    """Of the events. Raises SpecError for what cannot be read, or understood within the block."""
    file = folder / EVENTS
    try:
        if file.stat().st_size > MAX_BYTES:
            raise SpecError(f"{file} has {file.stat().st_size} bytes", expected=f"at most {MAX_BYTES}")
        with file.open(encoding="utf-8") as lines:
            yield lines
    except OSError as error:
        raise SpecError(
            f"{folder} is no run folder: {EVENTS} cannot be read: {error.strerror}",
            expected="what --trace FOLDER of serve or sim wrote",
            fix="lightwork sim tiny:llama --trace recorded",
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, StopIteration) as error:
        raise SpecError(
            f"{file} cannot be understood: {error!r}", expected="what --trace FOLDER of serve or sim wrote"
        ) from error


def _head(lines: Iterator[str]) -> tuple[Trace, int]:
    """With the seed."""
    head = json.loads(next(lines))
    trace = Trace(str(head["label"]))
    trace.about = dict(head["about"])
    return trace, int(head["seed"])


def _read(lines: Iterator[str]) -> Recorded:
    trace, seed = _head(lines)
    came: list[Came] = []
    texts: dict[int, tuple[str, tuple[int, ...]]] = {}
    decided, unasked = 0, False
    for told in _whole(lines):
        if "span" in told:
            span = Span(*told["span"])
            trace.add(span)
            decided += span.kind in DECIDED
            unasked = span.kind == "arrive"
        elif "text" in told:
            texts[told["text"]] = told["reason"], tuple(told["tokens"])
        elif "cancel" in told:
            came.append(Came(told["at_s"], decided, told["begun"], (told["cancel"],)))
        else:
            unasked = False
            request, ids = built(Request, told["request"]), tuple(told["ids"])
            came.append(Came(told["at_s"], decided - 1, told["begun"], ids, request, tuple(told["stop"])))
    if unasked:  # the record ends before it says what
        trace.spans.pop()
    return Recorded(trace=trace, seed=seed, came=came, texts=texts)


def _whole(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """All lines but one that a killed process left half written."""
    for line in lines:
        if line.endswith("\n"):
            yield json.loads(line)


def built(cls: Any, told: dict[str, Any]) -> Any:
    """A dataclass of what `asdict` and json made of it."""
    hints = get_type_hints(cls)
    return cls(
        **{f.name: _fitted(told[f.name], hints[f.name]) for f in fields(cls) if f.init and f.name in told}
    )


def _fitted(value: Any, hint: Any) -> Any:
    """A value as its field has it: objects are dataclasses, lists are sets or (nested) tuples."""
    if isinstance(value, dict):
        return built(next(arm for arm in (hint, *get_args(hint)) if is_dataclass(arm)), value)
    if isinstance(value, list):
        return frozenset(value) if get_origin(hint) is frozenset else _tuples(value)
    return value


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
