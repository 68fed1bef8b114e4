"""Watches a population of agents while it runs, and steers it, for a page on this machine.

    monitor = Monitor("game.yaml", trace)
    simulate(game, "process:2", trace=trace, perform=monitor.perform)

It is told spans by the trace and asks each place's Keeper for a look, at most twice a second and for at most
a fiftieth of the time, and only while a page is open or the run is kept. The kernel has one thread and the
pages another: what a page wants is posted to the kernel, and an answer that it is too busy to give is the
last one there was.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from functools import partial
from threading import Event as Flag
from typing import Any, TypeVar

from lightwork.errors import ActorLostError, BusyError, LightworkError
from lightwork.runtime.actors import Actors
from lightwork.runtime.clock import VirtualClock, WallClock
from lightwork.runtime.futures import Future
from lightwork.runtime.progress import say
from lightwork.runtime.trace import Span, Trace
from lightwork.runtime.watch import Described, Look, Page, State
from lightwork.serve.http.errors import HttpError
from lightwork.web.agent_answers import (
    MOST_ROUNDS,
    TOP,
    Shot,
    deed_of,
    event_of,
    is_round,
    of_agent,
    overview,
    round_of,
    shown,
)
from lightwork.web.agent_routes import Do, place_and_id
from lightwork.web.background import served
from lightwork.web.feed import Feed, beat
from lightwork.web.ring import Ring
from lightwork.web.routes import watched_app

T = TypeVar("T")
PERIOD_S = 0.5
SHARE = 50
"""A look that took a millisecond of CPU is not repeated within so many."""
AT_ONCE_S = 0.15
"""So long an overview waits for the kernel, before it is the last one."""
PATIENCE_S = 2.0
WATCHERS = 16
KEPT_DEEDS = 1000
RECENT = 300
"""Spans of rounds that a page is told first: what it needs for the end of a timeline, in some kilobytes."""
PAGES = 4
"""Of a place, that one answer looks through."""


class Monitor:
    """name: of the run. trace: of its kernel; what is done to agents is recorded there. keeps: whether looks
    are, too, for who replays it. port: of the page, 0 for any. stays: after the end, until Ctrl-C. url: once
    there is a page."""

    def __init__(
        self, name: str, trace: Trace, *, port: int = 0, keeps: bool = False, stays: bool = False
    ) -> None:
        self.name = name
        self.trace = trace
        self.port = port
        self.keeps = keeps
        self.stays = stays
        self.ended = False
        self.url = ""
        self.ring = Ring()
        self.spans = Feed(recent=RECENT)
        self._actors: Actors
        self._shot: Shot
        self._looks: dict[int, Look] = {}
        self._rounds: deque[dict[str, Any]] = deque(maxlen=MOST_ROUNDS)
        self._deeds: deque[tuple[int, dict[str, Any]]] = deque(maxlen=KEPT_DEEDS)
        self._clock = WallClock()
        self._due_s = 0.0
        self._looking: asyncio.Task[None] | None = None
        self._watchers = 0
        self._posted = Flag()
        trace.observers.append(self)

    # -- on the kernel's thread

    def on(self, span: Span) -> None:
        """An observer: of rounds as a whole, and of what was done to agents."""
        if span.kind == "call":
            return
        if is_round(span):
            done = round_of(span)
            self._rounds.append(done)
            self.ring.add("round", done)
        elif span.kind == "did":
            deed = deed_of(span)
            self._deeds.append((self.ring.add("did", deed), deed))
        if span.kind != "look":
            self.spans.on(span)

    def perform(self, actors: Actors, main: Coroutine[Any, Any, T]) -> T:
        """Run main on the actors' kernel, with a page. On a virtual clock, too, what is paused waits to be
        resumed."""
        self._actors = actors
        self._see_here()
        with served(watched_app(self), self.port, self.beat) as self.url:
            say(f"{self.url}/ui   ends with {'Ctrl-C' if self.stays else 'the run'}")
            try:
                done = self._run(main)
            except BaseException:
                self._end()
                raise
            with suppress(KeyboardInterrupt):
                self._end()
                if self.stays:
                    say("the run is over   Ctrl-C ends its page")
                    self._stay()
            return done

    def _end(self) -> None:
        self.ended = True
        self._see_here()
        self.ring.add("stats", _without_rounds(self._overview()))
        self.ring.add("end", {})

    def _run(self, main: Coroutine[Any, Any, T]) -> T:
        kernel = self._actors.kernel
        if not isinstance(kernel.clock, VirtualClock):
            done: T = kernel.run(main)
            return done
        task = kernel.spawn(main, name="main")
        task.add_callback(lambda _: kernel.stop())
        kernel.run()
        while not task.done and any(count.paused for count in self._actors.counts()):
            self._wait_for_page()
            kernel.run()
        if not task.done:
            kernel.run(_awaited(task))  # raises DeadlockError, with who waits for what
        result: T = task.result()
        return result

    def _stay(self) -> None:
        while True:
            if isinstance(self._actors.kernel.clock, VirtualClock):
                self._wait_for_page()
            self._actors.kernel.run()

    def _wait_for_page(self) -> None:
        while not self._posted.wait(PERIOD_S):
            pass  # a Ctrl-C that came just before the wait is heard now
        self._posted.clear()

    def _see_here(self) -> None:
        """The actors of this process, at once; of others, what was seen last."""
        for number in range(len(self._actors.places)):
            self._ask_to_look(number, bool)
        self._shot = Shot.of(self._actors, self._looks)

    def _look(self, tell: Callable[[Shot], object]) -> None:
        """Ask all places; tell when all have answered."""
        left = len(self._actors.places)

        def one() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                tell(Shot.of(self._actors, self._looks))

        for number in range(left):
            self._ask_to_look(number, one)

    def _ask_to_look(self, number: int, told: Callable[[], object]) -> None:
        def took(future: Future) -> None:
            if future.error is None:
                self._looks[number] = future.value
            else:
                self._looks.pop(number, None)
            told()

        _when_done(self._actors.keeper(number, "look", TOP), took)

    def _act(self, number: int, what: Do, id: int | None) -> Future:
        """Of an agent, or all of a place. Recorded when it is done."""
        actors = self._actors
        place = actors.places[number].name

        def record(done: Future) -> None:
            if done.error is None:
                now_s = actors.kernel.now()
                whom = {"host": place} if id is None else {"agent": f"{number}.{id}"}
                self.trace.add(Span(place, "did", what, now_s, now_s, args={**whom, "by": "page"}))

        if id is not None:
            done = actors.keeper(number, what, id)
        elif what == "kill":
            done = actors.kill_place(number)
        else:
            done = actors.pause_place(number) if what == "pause" else actors.resume_place(number)
        _when_done(done, record)
        return done

    # -- on the pages' thread

    async def beat(self) -> None:
        """Ten times a second."""
        if (self._watchers or self.keeps) and not self.ended:
            await self._refresh()

    async def _refresh(self) -> None:
        if self._looking is None and self._clock.now() >= self._due_s:
            self._looking = asyncio.create_task(self._look_again())
        if self._looking is not None:
            await asyncio.wait({self._looking}, timeout=AT_ONCE_S)

    async def _look_again(self) -> None:
        try:
            self._shot = await self._newest()
        except HttpError:  # the kernel is busy: later
            return
        finally:
            cost_s = max((look.cost_s for look in self._shot.looks.values()), default=0.0)
            self._due_s = self._clock.now() + max(PERIOD_S, SHARE * cost_s)
            self._looking = None
        told = self._overview()
        self.ring.add("stats", _without_rounds(told))
        if self.keeps:
            at_s = self._shot.now_s
            self._post(partial(self.trace.add, Span("page", "look", "look", at_s, at_s, args=told)))

    async def _newest(self) -> Shot:
        try:
            return await self._on_kernel(self._look, "a place")
        except HttpError:  # one does not answer: what is known of it, then
            return await self._on_kernel(lambda tell: tell(Shot.of(self._actors, self._looks)), "the run")

    def _overview(self) -> dict[str, Any]:
        return overview(self._shot, self.trace.label, [*self._rounds], ended=self.ended)

    def _post(self, fn: Callable[[], object]) -> None:
        self._actors.kernel.post(fn)
        self._posted.set()

    async def _on_kernel(self, ask: Callable[[Callable[[T], object]], object], who: str) -> T:
        """What ask(tell), called on the kernel's thread, tells. Raises HttpError 504 if it takes too long."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def set_it(value: T) -> None:
            if not answer.done():
                answer.set_result(value)

        def tell(value: T) -> None:
            with suppress(RuntimeError):  # the page has been closed meanwhile
                loop.call_soon_threadsafe(set_it, value)

        self._post(lambda: ask(tell))
        try:
            return await asyncio.wait_for(answer, PATIENCE_S)
        except TimeoutError:
            wrong = f"{who} does not answer"
            raise HttpError(504, wrong, expected=f"an answer in {PATIENCE_S:g} s", fix="ask again") from None

    async def _done(self, number: int, ask: Callable[[], Future]) -> Any:
        """The value of a future of a place. Raises HttpError 404 if there is no such actor, or place any
        more."""
        who = self._actors.places[number].name
        future: Future = await self._on_kernel(lambda tell: _when_done(ask(), tell), who)
        if isinstance(future.error, LightworkError):
            status = 404 if isinstance(future.error, ActorLostError) else 400
            raise HttpError(status, future.error.wrong, expected=future.error.expected, fix=future.error.fix)
        if future.error is not None:
            raise future.error
        return future.value

    async def _keeper(self, number: int, method: str, *args: Any) -> Any:
        if number >= len(self._actors.places):
            raise HttpError(404, f"there is no place {number}", expected=self._names())
        return await self._done(number, lambda: self._actors.keeper(number, method, *args))

    def _number(self, host: str) -> int:
        for number, place in enumerate(self._actors.places):
            if place.name == host:
                return number
        raise HttpError(404, f"no host is called {host!r:.40}", expected=self._names())

    def _names(self) -> str:
        return ", ".join(place.name for place in self._actors.places)

    # -- what pages ask

    async def overview(self, at_s: float | None) -> dict[str, Any]:
        await self._refresh()
        return self._overview()

    async def listing(
        self, host: str, state: State | None, after: str, limit: int, at_s: float | None
    ) -> dict[str, Any]:
        places = self._actors.places
        numbers = [self._number(host)] if host else [*range(len(places))]
        begin, position = _cursor(after)
        found: list[dict[str, Any]] = []
        for number in numbers:
            if number < begin or self._actors.desks[number].lost is not None:
                continue
            here = position if number == begin else None
            for _ in range(PAGES):
                if len(found) == limit:
                    return {"agents": found, "next": _place(number, here)}
                page: Page = await self._keeper(number, "page", state, here, limit - len(found))
                found += [shown(number, places[number].name, each) for each in page.actors]
                here = page.after
                if here is None:
                    break
            else:
                return {"agents": found, "next": _place(number, here)}
        return {"agents": found, "next": None}

    async def one(self, agent: str, at_s: float | None) -> dict[str, Any]:
        number, id = place_and_id(agent)
        told: Described = await self._keeper(number, "describe", id)
        host = self._actors.places[number].name
        events = [event_of(at, deed) for at, deed in [*self._deeds] if of_agent(deed, agent, host)]
        fields = [{"name": name, "value": value} for name, value in told.fields]
        return {**shown(number, host, told.seen), "fields": fields, "events": events}

    async def do(self, what: Do, agent: str | None, host: str | None) -> None:
        if self.ended:
            raise HttpError(409, "the run is over", expected="one that goes on")
        id: int | None = None
        if agent is not None:
            number, id = place_and_id(agent)
            told: Described = await self._keeper(number, "describe", id)
            if told.seen.state == "killed":
                raise HttpError(404, f"agent {agent} is not there any more", expected="one that is")
        else:
            number = self._number(host or "")
        await self._done(number, lambda: self._act(number, what, id))

    def check_room(self) -> None:
        if self._watchers >= WATCHERS:
            wrong = f"{WATCHERS} pages watch this run already"
            raise BusyError(wrong, retry_after_s=5, expected=f"fewer than {WATCHERS}", fix="close one")

    async def feed(self, last: int | None) -> AsyncIterator[bytes]:
        self._watchers += 1
        try:
            if last is None or last > self.ring.newest:
                last, past = self.ring.begin(("did",), "stats")
                for event in past:
                    yield event.sent()
            while True:
                for event in self.ring.after(last):
                    last = event.number
                    yield event.sent()
                    if event.name == "end":
                        return
                if self.ring.over and last == self.ring.newest:
                    return
                await beat()
        finally:
            self._watchers -= 1


def _without_rounds(told: dict[str, Any]) -> dict[str, Any]:
    """Rounds are events of their own, and 200 of them are ten times as long as the rest."""
    return {name: value for name, value in told.items() if name != "rounds"}


async def _awaited(task: Future) -> Any:
    return await task


def _when_done(future: Future, fn: Callable[[Future], object]) -> None:
    """Now, if it is done."""
    if future.done:
        future.kernel.observed(future)
        fn(future)
    else:
        future.add_callback(fn)


def _cursor(after: str) -> tuple[int, int | None]:
    """A place, and the agent there that a list goes on behind, or None."""
    if not after:
        return 0, None
    place, _, id = after.partition(".")
    return (int(place), None) if place.isdecimal() and len(place) < 4 and not id else place_and_id(after)


def _place(number: int, position: int | None) -> str:
    return f"{number}." if position is None else f"{number}.{position}"
