"""What the page is told of agents, as plain values: the same of a run that goes on and of a saved trace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lightwork.runtime.actors import Actors, Count
from lightwork.runtime.trace import Span
from lightwork.runtime.watch import EDGES_S, Look, Seen

TOP = 10
MOST_KINDS = 20
MOST_ROUNDS = 200


class Shot(NamedTuple):
    """The population at a moment. lost: by place, why it is. looks: by place; of one that did not answer, an
    older one or none."""

    now_s: float
    counts: Sequence[Count]
    lost: Sequence[str | None]
    looks: Mapping[int, Look]

    @classmethod
    def of(cls, actors: Actors, looks: Mapping[int, Look]) -> Shot:
        """On the kernel's thread."""
        lost = [None if desk.lost is None else desk.lost.wrong for desk in actors.desks]
        return cls(actors.kernel.now(), actors.counts(), lost, dict(looks))


def overview(shot: Shot, label: str, rounds: Iterable[Mapping[str, Any]], *, ended: bool) -> dict[str, Any]:
    names = [count.place for count in shot.counts]
    looks = {number: look for number, look in shot.looks.items() if shot.lost[number] is None}
    hosts = [_host(shot, number) for number in range(len(names))]
    kinds: dict[str, int] = {}
    for look in looks.values():
        for name, num in look.kinds.items():
            kinds[name] = kinds.get(name, 0) + num
    slowest = [shown(number, names[number], each) for number, look in looks.items() for each in look.slowest]
    return {
        "label": label,
        "now_s": shot.now_s,
        "total": sum(host["idle"] + host["busy"] for host in hosts),
        "ended": ended,
        "steerable": not ended,
        "hosts": [
            host for i, host in enumerate(hosts) if i or len(hosts) == 1 or host["idle"] + host["busy"]
        ],
        "kinds": most_frequent(kinds),
        "rounds": [*rounds],
        "busy_for": busy_for(
            [look.busy_for for look in looks.values()], [look.every for look in looks.values()]
        ),
        "slowest": slowest_of(slowest),
    }


def _host(shot: Shot, number: int) -> dict[str, Any]:
    count, look = shot.counts[number], shot.looks.get(number)
    lost = shot.lost[number]
    there = count if look is None else look.tally
    idle, busy, paused, waiting = there.idle, there.busy, there.paused, there.waiting
    if lost is not None:
        idle = busy = paused = waiting = 0
    return {
        "place": count.place,
        "idle": idle,
        "busy": busy,
        "paused": paused,
        "waiting": waiting,
        "messages": count.messages,
        "bytes": count.bytes,
        "lost": lost,
    }


def busy_for(counts: Sequence[Sequence[int]], every: Sequence[int]) -> dict[str, Any]:
    """counts: of places, by EDGES_S. every: one of so many was looked at."""
    none = [0] * (len(EDGES_S) - 1)
    total = [sum(column) for column in zip(none, *counts, strict=True)]
    return {"edges_s": EDGES_S, "counts": total, "every": max(every, default=1)}


def most_frequent(kinds: Mapping[str, int]) -> list[dict[str, Any]]:
    ordered = sorted(kinds.items(), key=lambda each: (-each[1], each[0]))
    return [{"class": name, "count": num} for name, num in ordered[:MOST_KINDS]]


def slowest_of(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of agents as `shown`."""
    ordered = sorted(found, key=lambda each: -(each["for_s"] or 0.0))[:TOP]
    return [{key: each[key] for key in ("id", "host", "class", "method", "for_s")} for each in ordered]


def shown(place: int, host: str, seen: Seen) -> dict[str, Any]:
    """An agent in a list."""
    return {
        "id": f"{place}.{seen.id}",
        "host": host,
        "class": seen.kind,
        "state": seen.state,
        "waiting": seen.waiting,
        "method": seen.method,
        "for_s": seen.for_s,
    }


def round_of(span: Span) -> dict[str, Any]:
    """A round as a whole: a span of kind "round" with its number among its args."""
    told = dict(span.args or {})
    return {"number": told.pop("round"), "start_s": span.start_s, "end_s": span.end_s, **told}


def is_round(span: Span) -> bool:
    return span.kind == "round" and span.args is not None and "round" in span.args


def deed_of(span: Span) -> dict[str, Any]:
    """What was done to an agent or a host: an instant of kind "did"."""
    return {"t_s": span.end_s, "do": span.name, **(span.args or {})}


def event_of(number: int, deed: Mapping[str, Any]) -> dict[str, Any]:
    """A deed among the events of an agent."""
    whom = "it" if "agent" in deed else f"all of {deed.get('host')}"
    return {"id": number, "t_s": deed["t_s"], "what": deed["do"], "text": f"{whom}, by {deed.get('by')}"}


def of_agent(deed: Mapping[str, Any], agent: str, host: str) -> bool:
    return deed.get("agent") == agent or deed.get("host") == host
