"""Where agents live: a tree of named environments, what happens in them, and groups of agents.

    town = Env("town", [Spot("square", at=(0, 0)), Value("weather", "sunny")])
    town.find("weather").listen("set", print)
    town.find("weather").set("rain")    # Event(env='town/weather', name='set', args={'value': 'rain'}, ...)

Every one of these may be an actor: `actors.create(Spot, "square", on=place)`. Then its methods are called by
messages, and a listener that is somebody else's method is a `Tell`.
"""

from __future__ import annotations

import inspect
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from lightwork._listing import nearest
from lightwork.errors import ActorLostError, RangeError, SpecError
from lightwork.runtime.effects import Sleep
from lightwork.runtime.futures import Future

if TYPE_CHECKING:
    from lightwork.runtime.actors import Actors, Here, Ref

Method = TypeVar("Method", bound=Callable[..., Any])
Point = tuple[float, float]
AT_ONCE = 1024
"""Members that a group asks before others have their turn, so that no million messages lie in the queue."""


@dataclass(frozen=True, slots=True)
class Event:
    """A method of an environment was called. env: its path. args: by parameter. returned: what it gave."""

    env: str
    name: str
    args: Mapping[str, Any]
    returned: Any


Listener = Callable[[Event], object]


@dataclass(frozen=True, slots=True)
class Tell:
    """A listener that passes events on to a method of an actor, wherever it is."""

    ref: Ref
    method: str

    def __call__(self, event: Event) -> None:
        self.ref.tell(self.method, event)


def event(method: Method) -> Method:
    """Make a method of an environment one that listeners hear of, once it has returned."""
    signature, name = inspect.signature(method), method.__name__

    def happened(env: Env, args: tuple[Any, ...], named: dict[str, Any], returned: Any) -> None:
        if env.listeners.get(name):
            given = signature.bind(env, *args, **named)
            given.apply_defaults()
            by_name = dict([*given.arguments.items()][1:])
            env.emit(Event(env.path, name, by_name, returned))

    if inspect.iscoroutinefunction(method):

        @wraps(method)
        async def awaited(self: Env, *args: Any, **named: Any) -> Any:
            returned = await method(self, *args, **named)
            happened(self, args, named, returned)
            return returned

        return awaited  # type: ignore[return-value]

    @wraps(method)
    def called(self: Env, *args: Any, **named: Any) -> Any:
        returned = method(self, *args, **named)
        happened(self, args, named, returned)
        return returned

    return called  # type: ignore[return-value]


class Env:
    """A named environment with others inside it. Raises SpecError for names that are taken or have a "/"."""

    def __init__(self, name: str, children: Iterable[Env] = ()) -> None:
        if not name or "/" in name:
            raise SpecError(f"an environment is named {name!r}", expected='a text without "/"')
        self.name = name
        self.parent: Env | None = None
        self.children: dict[str, Env] = {}
        self.listeners: dict[str, list[Listener]] = {}
        for child in children:
            self.add(child)

    @property
    def path(self) -> str:
        """Names from the root to here."""
        return self.name if self.parent is None else f"{self.parent.path}/{self.name}"

    def add(self, child: Env) -> None:
        """Put an environment inside this one."""
        above: Env | None = self
        while above is not None:
            if above is child:
                raise SpecError(f"{self.path!r} is inside {child.name!r} already", expected="a tree")
            above = above.parent
        if child.name in self.children or child.parent is not None:
            where = self if child.parent is None else child.parent
            raise SpecError(f"{where.path!r} has a {child.name!r}", expected="each name once, in one place")
        child.parent = self
        self.children[child.name] = child

    def remove(self, name: str) -> Env:
        """Take a child out; it is the root of its own tree then."""
        child = self.find(name)
        del self.children[name]
        child.parent = None
        return child

    def find(self, path: str) -> Env:
        """What is below here, by names with "/" between them. Raises SpecError if there is none."""
        found = self
        for name in path.split("/"):
            if name not in found.children:
                near = nearest(name, found.children) or ", ".join([*found.children][:8])
                raise SpecError(f"{found.path!r} has no {name!r}", expected=near or "nothing is inside it")
            found = found.children[name]
        return found

    def listen(self, name: str, listener: Listener) -> None:
        """Call listener(event) whenever this method has been called: in the order in which they listened."""
        if not hasattr(getattr(type(self), name, None), "__wrapped__"):
            raise SpecError(f"{self.path!r} has no event {name!r}", expected="a method under @event")
        self.listeners.setdefault(name, []).append(listener)

    def unlisten(self, name: str, listener: Listener) -> None:
        """Forget a listener, if it is one."""
        heard = self.listeners.get(name, [])
        if listener in heard:
            heard.remove(listener)

    def emit(self, happened: Event) -> None:
        """Tell those who listen now."""
        for listener in [*self.listeners.get(happened.name, ())]:
            listener(happened)


class Value(Env):
    """An environment with a value: `get` and `set`."""

    def __init__(self, name: str, value: Any = None, children: Iterable[Env] = ()) -> None:
        super().__init__(name, children)
        self.value = value

    @event
    def get(self) -> Any:
        return self.value

    @event
    def set(self, value: Any) -> None:
        self.value = value


class Spot(Env):
    """An environment at a place in the plane, which can move."""

    def __init__(self, name: str, at: Point = (0.0, 0.0), children: Iterable[Env] = ()) -> None:
        super().__init__(name, children)
        self.at = at

    @event
    def move_to(self, x: float, y: float) -> Point:
        self.at = (x, y)
        return self.at

    @event
    def move_by(self, x: float, y: float) -> Point:
        self.at = (self.at[0] + x, self.at[1] + y)
        return self.at


class Held(Env):
    """An environment that one agent at a time has to itself."""

    def __init__(self, name: str, children: Iterable[Env] = ()) -> None:
        super().__init__(name, children)
        self.holder: str | None = None

    @event
    def hold(self, who: str) -> bool:
        """True if it is theirs now; False if it is somebody else's."""
        if self.holder is None:
            self.holder = who
        return self.holder == who

    @event
    def let_go(self, who: str) -> None:
        """Raises RangeError if it is not theirs."""
        if self.holder != who:
            raise RangeError(
                f"{who!r} lets go of {self.path!r}, held by {self.holder!r}", expected="its holder"
            )
        self.holder = None


@dataclass(frozen=True, slots=True)
class Tally:
    """What a group came to: replies that counted, together, and how many they are."""

    sum: int
    count: int


class Crowd(Collection["Ref"]):
    """Many actors of one class at one place, by their ids: eight bytes each, and a Ref while one is asked."""

    def __init__(self, actors: Actors, members: Iterable[Ref]) -> None:
        self._actors = actors
        self._ids = array("q")
        self._cls: type = object
        self._place = 0
        for member in members:
            self._ids.append(member.id)
            self._cls, self._place = member.cls, member.place

    def __iter__(self) -> Iterator[Ref]:
        ref, place, cls = self._actors.ref, self._place, self._cls
        return (ref(place, id, cls) for id in self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, ref: object) -> bool:
        return any(ref == member for member in self)


class Members(Protocol):
    """Who is in a group: how to make them, for it travels to where the group is."""

    def join(self, here: Here) -> Collection[Ref]:
        """Make them, beside the group."""
        ...

    def leave(self) -> None:
        """The group is over: end what they share."""
        ...


class Group(Env):
    """Agents and the environment that speaks to all of them, at one place.

    An actor: whoever runs the simulation sends it one message per round and gets one back, whatever the
    number of its members. A reply is a whole number, so that no order of adding makes a difference, or None.
    """

    def __init__(self, name: str, members: Members) -> None:
        super().__init__(name)
        self.make: Members | None = members
        self.members: Collection[Ref] = ()

    def begin(self, here: Here) -> None:
        """Called once, where the group is to live."""
        self.here = here
        if self.make is not None:
            self.members = self.make.join(here)

    def __getstate__(self) -> dict[str, Any]:
        """What `Actors.save` keeps: who is in it, not what they share."""
        return {"name": self.name, "here": self.here, "members": [*self.members]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Env.__init__(self, state["name"])
        self.here, self.members, self.make = state["here"], state["members"], None

    @event
    async def ask(self, method: str, *args: Any) -> Tally:
        """Call a method of every member at once; the replies that are not None, added up.

        Members that were killed have no reply. Raises what another one raises.
        """
        total = count = 0
        left = len(self.members)
        over = self.here.kernel.future(f"replies to {self.path}")

        def took(reply: Future) -> None:
            nonlocal total, count, left
            left -= 1
            if reply.value is not None:
                total += reply.value
                count += 1
            failed = reply.error if not isinstance(reply.error, ActorLostError) else None
            if not over.done and (left == 0 or failed is not None):
                over.end(None, failed)

        for i, member in enumerate(self.members, 1):  # no list of a million futures, nor of their values
            getattr(member, method)(*args).add_callback(took)
            if i % AT_ONCE == 0:
                await Sleep(0.0)
        if self.members:
            await over
        return Tally(total, count)

    def leave(self) -> None:
        """It is over."""
        if self.make is not None:
            self.make.leave()
