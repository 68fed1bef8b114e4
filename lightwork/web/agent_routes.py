"""What the page asks of a population of agents: one that runs, or one of a saved trace.

Answers are as long whether there are a hundred agents or a million: counts, a histogram, the slowest, and the
list in pages.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Literal, Protocol

from fastapi import Header, Query
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, FiniteFloat

from lightwork.runtime.watch import State
from lightwork.serve.http.errors import HttpError

MOST_LISTED = 200

Do = Literal["pause", "resume", "kill"]
Handler = Callable[..., Any]


class Watched(Protocol):
    """A population. Ids are PLACE.ID, hosts the names of places, times seconds since the run began.

    at_s: of a saved run, a moment, None for its end; a run that goes on is told as it is.
    """

    async def overview(self, at_s: float | None) -> dict[str, Any]: ...

    async def listing(
        self, host: str, state: State | None, after: str, limit: int, at_s: float | None
    ) -> dict[str, Any]: ...

    async def one(self, agent: str, at_s: float | None) -> dict[str, Any]:
        """Raises HttpError 404 and 504."""
        ...

    async def do(self, what: Do, agent: str | None, host: str | None) -> None:
        """Raises HttpError 404, 409 and 504."""
        ...

    def feed(self, last: int | None) -> AsyncIterator[bytes]:
        """Server-sent events after the one of that number; without one, what there is of the past."""
        ...

    def check_room(self) -> None:
        """Raises BusyError if too many pages are open."""
        ...


class DoBody(BaseModel):
    """Of an agent, or of all of a host."""

    model_config = ConfigDict(extra="forbid")
    do: Do
    agent: str | None = None
    host: str | None = None


def agent_routes(watched: Watched) -> list[tuple[str, str, Handler]]:
    """Method, path and handler of each."""

    async def overview(at: FiniteFloat | None = None) -> dict[str, Any]:
        return await watched.overview(at)

    async def listing(
        host: str = "",
        state: Literal["", "idle", "busy", "paused", "killed"] = "",
        after: str = "",
        limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = 50,
        at: FiniteFloat | None = None,
    ) -> dict[str, Any]:
        return await watched.listing(host, state or None, after, limit, at)

    async def one(id: str, at: FiniteFloat | None = None) -> dict[str, Any]:
        return await watched.one(id, at)

    async def do(body: DoBody) -> dict[str, Any]:
        if (body.agent is None) == (body.host is None):
            raise HttpError(400, "agent and host are both given, or neither is", expected="one of them")
        await watched.do(body.do, body.agent, body.host)
        return {"done": True}

    async def feed(
        last: str | None = None, last_event_id: Annotated[str | None, Header()] = None
    ) -> Response:
        watched.check_room()
        said = last_event_id or last
        number = int(said) if said and said.isdecimal() and len(said) < 16 else None
        events = watched.feed(number)
        return StreamingResponse(
            events, media_type="text/event-stream", headers={"cache-control": "no-store"}
        )

    return [
        ("GET", "/ui/agents", overview),
        ("GET", "/ui/agents/list", listing),
        ("GET", "/ui/agents/one", one),
        ("GET", "/ui/agents/feed", feed),
        ("POST", "/ui/agents/do", do),
    ]


def place_and_id(agent: str) -> tuple[int, int]:
    """Raises HttpError for what is no id."""
    place, dot, id = agent.partition(".")
    if dot and place.isdecimal() and id.isdecimal() and len(agent) < 24:
        return int(place), int(id)
    raise HttpError(404, f"no agent is called {agent!r:.40}", expected="PLACE.ID, as in 1.4099")
