"""What an actor is, as plain values that JSON takes; and the actor again.

A state is what the class's `__getstate__` says: by default all its fields. None, booleans, numbers, strings,
lists and dicts with strings as keys stand for themselves; a tuple, another dict, a Ref and an actor's Here
are a dict whose one key begins with "$". Everything else is refused. Nothing in a state file is run, and no
module is imported for one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from lightwork.errors import SpecError
from lightwork.runtime.calls import Call
from lightwork.runtime.mailbox import ABSENT, BITS, MAX_PLACES, Mailbox
from lightwork.runtime.refs import Here, Ref

if TYPE_CHECKING:
    from lightwork.runtime.table import Table

Saved = list[Any]
"""Id, class as module:name, "new" or "state", and what it was to be constructed from, or its state."""
_PLAIN = (type(None), bool, int, float, str)


def save(table: Table) -> list[Saved]:
    """Raises SpecError, naming it, if an actor is busy, has messages waiting or holds what is not plain."""
    if table.held:
        raise SpecError(
            f"{len(table.held)} messages wait at a paused place", expected="no messages", fix="resume it"
        )
    saved: list[Saved] = []
    for creator, row in enumerate(table.rows[:MAX_PLACES]):
        for i, entry in enumerate(row):
            id = i << BITS | creator
            if isinstance(entry, Mailbox | Call):
                if isinstance(entry, Call) or entry.call is not None or entry.waiting:
                    raise SpecError(
                        f"{table.describe(id)} is busy", expected="idle actors only", fix="await its futures"
                    )
                entry = None if entry.actor is ABSENT else entry.actor
            if type(entry) is tuple:
                saved.append([id, _name(entry[0]), "new", _plain(entry[1:], table.describe(id))])
            elif entry is not None:
                state = _plain(entry.__getstate__(), table.describe(id))
                saved.append([id, _name(type(entry)), "state", state])
    return saved


def resolve(saved: Iterable[Saved], ref: Callable[[int, int, type], Any]) -> list[Saved]:
    """The same with classes and Refs instead of their names, for the process that the actors are to live in.

    Raises SpecError for a class whose module this process has not imported.
    """

    def here(key: str, drawn: Any) -> Any:
        return {"$here": [key, drawn]}

    def its_ref(place: int, id: int, name: str) -> Any:
        return ref(place, id, _class(name))

    return [[id, _class(name), what, _made(plain, its_ref, here)] for id, name, what, plain in saved]


def restore(table: Table, resolved: Iterable[Saved]) -> None:
    """Put actors back under their ids."""
    for id, cls, what, plain in resolved:

        def here(key: str, drawn: Any, id: int = id, cls: type = cls) -> Any:
            return table.here(id, cls, key, drawn)

        state = _made(plain, None, here)
        if what == "new":
            table.put(id, (cls, *state))
        else:
            actor = cls.__new__(cls)
            _set_state(actor, state)
            table.put(id, actor)


def _set_state(actor: Any, state: Any) -> None:
    if hasattr(actor, "__setstate__"):
        actor.__setstate__(state)
        return
    for fields in state if isinstance(state, tuple) else (state,):
        for name, value in (fields or {}).items():
            setattr(actor, name, value)


def _name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _class(name: str) -> type:
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type):
        raise SpecError(
            f"{name} is no class of this program", expected="module:name of a class", fix=f"import {module}"
        )
    return found


def _plain(value: Any, where: str) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is list:
        return [_plain(part, f"{where}[{i}]") for i, part in enumerate(value)]
    if kind is tuple:
        return {"$tuple": [_plain(part, f"{where}[{i}]") for i, part in enumerate(value)]}
    if kind is dict:
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: _plain(part, f"{where}.{key}") for key, part in value.items()}
        return {"$dict": [[_plain(k, where), _plain(v, f"{where}[{k!r}]")] for k, v in value.items()]}
    if isinstance(value, Ref):
        return {"$ref": [value.place, value.id, _name(value.cls)]}
    if isinstance(value, Here):
        return {"$here": [value.key, value.drawn()]}
    raise SpecError(
        f"{where} is a {kind.__name__}",
        expected="None, numbers, strings, lists, tuples, dicts, Refs, Here",
        fix="give the class __getstate__ and __setstate__",
    )


def _made(plain: Any, ref: Callable[..., Any] | None, here: Callable[..., Any]) -> Any:
    if isinstance(plain, list | tuple):
        return type(plain)(_made(part, ref, here) for part in plain)
    if not isinstance(plain, dict):
        return plain
    if "$tuple" in plain:
        return tuple(_made(part, ref, here) for part in plain["$tuple"])
    if "$dict" in plain:
        return {_made(k, ref, here): _made(v, ref, here) for k, v in plain["$dict"]}
    if "$here" in plain:
        return here(*plain["$here"])
    if "$ref" in plain and ref is not None:
        return ref(*plain["$ref"])
    return {key: _made(part, ref, here) for key, part in plain.items()}
