"""A population of agents in a saved trace, at any moment of its run: as `Monitor` tells of a live one.

Calls are kept as columns, 26 bytes each, and a moment is counted from them when somebody asks for it. A run
whose agents lived in other processes has no calls in its trace; it has the looks that were taken of it.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_right
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lightwork.runtime.perfetto import read_chrome_trace
from lightwork.runtime.places.local import Local
from lightwork.runtime.trace import Span, Trace
from lightwork.runtime.watch import EDGES_S, Seen, State
from lightwork.serve.http.errors import HttpError
from lightwork.serve.run_folder import read_head, read_spans
from lightwork.web.agent_answers import (
    MOST_ROUNDS,
    TOP,
    busy_for,
    deed_of,
    event_of,
    is_round,
    most_frequent,
    of_agent,
    round_of,
    shown,
    slowest_of,
)
from lightwork.web.agent_routes import Do, place_and_id
from lightwork.web.ring import Ring

MAX_CHROME_BYTES = 32 << 20
"""Of a Chrome trace, which is read as a whole; a folder is not."""
PLACE_SHIFT = 48
STATES: tuple[State, ...] = ("idle", "busy", "paused", "killed")
PAUSED, KILLED = 2, 3
HERE = Local().name
LATEST = 100
"""Calls of an agent that are told."""


def read_agents(run: Path) -> Replay | None:
    """Of a run folder or a Chrome trace; None if it is not of agents. Raises SpecError if it is neither."""
    if run.is_dir():
        trace = read_head(run)
        if "places" not in trace.about:
            return None
        replay = Replay(trace)
        read_spans(run, replay)
    elif run.stat().st_size > MAX_CHROME_BYTES:
        return None
    else:
        found = [trace for trace in read_chrome_trace(run) if "places" in trace.about]
        if not found:
            return None
        replay = Replay(found[0])
        for span in found[0].spans:
            replay.on(span)
    replay.seal()
    return replay


class _Moment(NamedTuple):
    """busy: the calls that go on. call: of each agent, or -1. state: of each agent, among STATES."""

    at_s: float
    busy: Any
    call: Any
    state: Any


class Replay:
    """trace: label and about. An observer of its spans, in order of their end; then `seal` it."""

    def __init__(self, trace: Trace) -> None:
        self.label = trace.label
        self.places: list[str] = [str(name) for name in trace.about["places"]]
        self.end_s = 0.0
        self._numbers = {name: number for number, name in enumerate(self.places)}
        self._names: dict[str, int] = {}
        self._key, self._name = array("q"), array("H")
        self._start, self._end = array("d"), array("d")
        self._rounds: list[dict[str, Any]] = []
        self._deeds: list[dict[str, Any]] = []
        self._looks: list[tuple[float, str]] = []
        self._ring = Ring()
        self._moment: _Moment | None = None

    def on(self, span: Span) -> None:
        self.end_s = max(self.end_s, span.end_s)
        if span.kind == "call":
            self._key.append(self._numbers[span.rank] << PLACE_SHIFT | int(span.peer))
            self._name.append(self._names.setdefault(span.name, len(self._names)))
            self._start.append(span.start_s)
            self._end.append(span.end_s)
        elif is_round(span):
            self._rounds.append(round_of(span))
        elif span.kind == "did":
            self._deeds.append(deed_of(span))
        elif span.kind == "look" and span.args is not None:
            self._looks.append((span.end_s, json.dumps(span.args)))

    def seal(self) -> None:
        """All spans have been told."""
        names = [name.rpartition(".") for name in self._names]
        self._kinds = sorted({kind for kind, _, _ in names})
        self._kind_of_name = np.array([self._kinds.index(kind) for kind, _, _ in names], np.int16)
        self._methods = [method for _, _, method in names]
        self.starts, self.ends = np.frombuffer(self._start), np.frombuffer(self._end)
        self.names = np.frombuffer(self._name, np.uint16)
        keys = np.frombuffer(self._key, np.int64)
        self.agents = np.unique(keys)
        self.agent_of = np.searchsorted(self.agents, keys).astype(np.int32)
        self._key = array("q")
        self.kind_of = np.zeros(len(self.agents), np.int16)
        self.kind_of[self.agent_of] = self._kind_of_name[self.names]
        self.place_of = (self.agents >> PLACE_SHIFT).astype(np.int16)
        told = [(deed["t_s"], "did", deed) for deed in self._deeds]
        told += [(done["end_s"], "round", done) for done in self._rounds]
        self._ring = Ring(keep=len(told) + 1)
        for _, name, data in sorted(told, key=lambda each: each[0]):
            self._ring.add(name, data)
        self._ring.add("end", {})

    # -- a moment

    def _at(self, at_s: float | None) -> _Moment:
        """The last one that was asked for is kept: a page asks several things of it."""
        at_s = self.end_s if at_s is None else at_s
        if self._moment is None or self._moment.at_s != at_s:
            busy = np.flatnonzero((self.starts <= at_s) & (self.ends > at_s)).astype(np.int32)
            call = np.full(len(self.agents), -1, np.int32)
            call[self.agent_of[busy]] = busy
            state = (call >= 0).astype(np.uint8)
            self._steer(state, at_s)
            self._moment = _Moment(at_s, busy, call, state)
        return self._moment

    def _steer(self, state: Any, at_s: float) -> None:
        """What was done to agents and hosts by then. Killed ones stay so."""
        paused: dict[str, Any] = {}
        for deed in self._deeds:
            if deed["t_s"] > at_s:
                continue
            whom = str(deed.get("agent") or deed.get("host"))
            if deed["do"] == "pause":
                paused[whom] = self._whose(deed)
            elif deed["do"] == "resume":
                paused.pop(whom, None)
        killed = [self._whose(d) for d in self._deeds if d["t_s"] <= at_s and d["do"] == "kill"]
        for which, number in [*((w, PAUSED) for w in paused.values()), *((w, KILLED) for w in killed)]:
            state[which] = number

    def _whose(self, deed: dict[str, Any]) -> Any:
        """Indices of agents."""
        if "agent" in deed:
            return [index for index in [self._index(str(deed["agent"]))] if index is not None]
        return np.flatnonzero(self.place_of == self._numbers.get(str(deed.get("host")), -1))

    def _index(self, agent: str) -> int | None:
        number, id = place_and_id(agent)
        key = number << PLACE_SHIFT | id
        index = int(np.searchsorted(self.agents, key))
        return index if index < len(self.agents) and self.agents[index] == key else None

    def _seen(self, index: int, moment: _Moment) -> dict[str, Any]:
        call = int(moment.call[index])
        state = STATES[moment.state[index]]
        method = for_s = None
        if call >= 0 and state != "killed":
            method = self._methods[self.names[call]]
            for_s = moment.at_s - float(self.starts[call])
        number = int(self.place_of[index])
        id = int(self.agents[index]) & ((1 << PLACE_SHIFT) - 1)
        seen = Seen(id, self._kinds[self.kind_of[index]], state, 0, method, for_s)
        return shown(number, self.places[number], seen)

    # -- what pages ask

    async def overview(self, at_s: float | None) -> dict[str, Any]:
        if not len(self.agents):
            return self._looked(at_s)
        moment = self._at(at_s)
        busy = moment.busy[moment.state[self.agent_of[moment.busy]] != KILLED]
        for_s = np.sort(moment.at_s - self.starts[busy])
        edges = np.searchsorted(for_s, EDGES_S[1:-1])
        counts = np.diff(np.concatenate([[0], edges, [len(for_s)]]))
        slowest = busy[np.argsort(self.starts[busy], kind="stable")[:TOP]]
        alive = moment.state != KILLED
        kinds = np.bincount(self.kind_of[alive], minlength=len(self._kinds))
        return {
            "label": self.label,
            "now_s": moment.at_s,
            "total": int(alive.sum()),
            "ended": True,
            "steerable": False,
            "hosts": self._hosts(moment),
            "kinds": most_frequent({kind: int(num) for kind, num in zip(self._kinds, kinds, strict=True)}),
            "rounds": self._rounds_at(moment.at_s),
            "busy_for": busy_for([counts.tolist()], [1]),
            "slowest": slowest_of([self._seen(int(self.agent_of[call]), moment) for call in slowest]),
        }

    def _hosts(self, moment: _Moment) -> list[dict[str, Any]]:
        num = len(self.places)
        begun = np.bincount(self.place_of[self.agent_of[self.starts <= moment.at_s]], minlength=num)
        states = np.bincount(self.place_of * np.int16(4) + moment.state, minlength=4 * num).reshape(num, 4)
        alive = moment.state != KILLED
        doing = np.bincount(self.place_of[alive & (moment.call >= 0)], minlength=num)
        gone = {
            d["host"] for d in self._deeds if d["do"] == "kill" and "host" in d and d["t_s"] <= moment.at_s
        }
        hosts = []
        for number, name in enumerate(self.places):
            there, busy = int(states[number, :KILLED].sum()), int(doing[number])
            host = {"place": name, "idle": there - busy, "busy": busy, "paused": int(states[number, PAUSED])}
            host |= {"waiting": 0, "messages": int(begun[number]), "bytes": 0}
            hosts.append(host | {"lost": "was killed" if name in gone else None})
        return [host for host in hosts if host["place"] != HERE or len(hosts) == 1 or host["messages"]]

    def _looked(self, at_s: float | None) -> dict[str, Any]:
        """By the last look before then."""
        at_s = self.end_s if at_s is None else at_s
        index = bisect_right([told_s for told_s, _ in self._looks], at_s) - 1
        told: dict[str, Any] = json.loads(self._looks[max(0, index)][1]) if self._looks else self._nothing()
        return {**told, "now_s": at_s, "rounds": self._rounds_at(at_s), "ended": True, "steerable": False}

    def _nothing(self) -> dict[str, Any]:
        told: dict[str, Any] = {"label": self.label, "total": 0, "hosts": [], "kinds": [], "slowest": []}
        return told | {"busy_for": busy_for([], [])}

    def _rounds_at(self, at_s: float) -> list[dict[str, Any]]:
        """Of one that goes on, nothing is known that its end told."""
        begun = [done for done in self._rounds if done["start_s"] <= at_s][-MOST_ROUNDS:]
        return [
            done if done["end_s"] <= at_s else {k: done[k] for k in ("number", "start_s")} | {"end_s": None}
            for done in begun
        ]

    async def listing(
        self, host: str, state: State | None, after: str, limit: int, at_s: float | None
    ) -> dict[str, Any]:
        moment = self._at(at_s)
        first, last = 0, len(self.agents)
        if host:
            if host not in self._numbers:
                raise HttpError(404, f"no host is called {host!r:.40}", expected=", ".join(self.places))
            number = self._numbers[host]
            first, last = np.searchsorted(self.agents, [number << PLACE_SHIFT, (number + 1) << PLACE_SHIFT])
        if after:
            number, id = place_and_id(after)
            behind = np.searchsorted(self.agents, number << PLACE_SHIFT | id, side="right")
            first = max(first, int(behind))
        if state is None:
            found = np.arange(first, min(last, first + limit + 1))
        else:
            found = first + np.flatnonzero(moment.state[first:last] == STATES.index(state))[: limit + 1]
        agents = [self._seen(int(index), moment) for index in found[:limit]]
        return {"agents": agents, "next": agents[-1]["id"] if len(found) > limit else None}

    async def one(self, agent: str, at_s: float | None) -> dict[str, Any]:
        index = self._index(agent)
        if index is None:
            raise HttpError(404, f"there is no agent {agent!r:.40}", expected="one that was asked something")
        seen = self._seen(index, self._at(at_s))
        events = [event_of(0, deed) for deed in self._deeds if of_agent(deed, agent, seen["host"])]
        for call in np.flatnonzero(self.agent_of == index)[-LATEST:]:
            start_s, end_s = float(self.starts[call]), float(self.ends[call])
            text = f"{end_s - start_s:.3g} s"
            what = self._methods[self.names[call]]
            events.append({"id": 0, "t_s": start_s, "what": what, "text": text})
        events.sort(key=lambda event: event["t_s"])
        events = [event | {"id": number} for number, event in enumerate(events, 1)]
        return {**seen, "fields": [], "events": events}

    async def do(self, what: Do, agent: str | None, host: str | None) -> None:
        raise HttpError(409, "a saved run cannot be changed", expected="one that goes on")

    def check_room(self) -> None:
        """There is no queue for anybody."""

    async def feed(self, last: int | None) -> AsyncIterator[bytes]:
        for event in self._ring.after(last or 0):
            yield event.sent()
