"""Tools from Python functions: the schema from type hints and docstring, arguments and results checked.

    @tool
    def weather(city: str, days: int = 1) -> str:
        '''What the weather will be.

        city: its name in English.
        '''

    tools = load_tools("my_tools.py")

A call whose arguments do not fit, and a result that is not what the function declares, raise UsageError with
the reason, which Toolbox makes an observation.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, overload

from lightwork.agents.quiet import Note, collecting
from lightwork.agents.tool import Tool, ToolEffect
from lightwork.errors import MissingExtraError, SpecError

if TYPE_CHECKING:
    from lightwork.agents.signatures import Signature

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@overload
def tool(fn: Callable[..., Any], /) -> Tool: ...
@overload
def tool(
    *,
    name: str = "",
    description: str = "",
    effect: ToolEffect = "read",
    limit: int = 0,
    deadline_s: float = 60.0,
    cost_s: float = 0.0,
    inline: bool = False,
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(fn: Callable[..., Any] | None = None, /, **settings: Any) -> Any:
    """A function as a Tool, or a decorator that makes one; settings: see `Tool`. It may be `async`.

    name, description: "" takes the function's own. Raises SpecError for a function that cannot be called by
    name or whose type hints are no types.
    """
    return _made(fn, **settings) if fn is not None else lambda function: _made(function, **settings)


def _made(fn: Callable[..., Any], *, name: str = "", description: str = "", **settings: Any) -> Tool:
    signature = _signature(fn)
    name = name or signature.name
    if not _NAME.fullmatch(name):
        raise SpecError(
            f"a tool cannot be called {name!r}",
            expected="1 to 64 letters, digits, _, - or .",
            fix="@tool(name=...)",
        )
    return Tool(
        name=name,
        description=description or signature.description,
        parameters=signature.schema,
        fn=_checked_async(fn, signature) if inspect.iscoroutinefunction(fn) else _checked(fn, signature),
        **settings,
    )


def _signature(fn: Callable[..., Any]) -> Signature:
    try:
        from lightwork.agents.signatures import Signature
    except ModuleNotFoundError as error:
        if error.name != "pydantic":
            raise
        raise MissingExtraError("pydantic", "serve") from None
    return Signature(fn)


def _checked(fn: Callable[..., Any], signature: Signature) -> Callable[..., Any]:
    def call(**arguments: Any) -> Any:
        first, named = signature.bind(arguments)
        return signature.check(fn(*first, **named))

    return call


def _checked_async(fn: Callable[..., Any], signature: Signature) -> Callable[..., Any]:
    async def call(**arguments: Any) -> Any:
        first, named = signature.bind(arguments)
        return signature.check(await fn(*first, **named))

    return call


def load_tools(path: Path | str) -> list[Tool]:
    """The tools in a file of Python: what is decorated with `tool`; if nothing is, every function of it whose
    parameters all have type hints. Names that begin with _ are left out.

    Raises SpecError if there is none, or the file cannot be imported.
    """
    file = Path(path).expanduser()
    module = _import(file)
    public = [(name, value) for name, value in vars(module).items() if not name.startswith("_")]
    made = {id(value): value for _, value in public if isinstance(value, Tool)}
    tools = [*made.values()] or [tool(value) for _, value in public if _is_offered(value, module)]
    if not tools:
        raise SpecError(
            f"there is no tool in {file}",
            expected="functions with type hints, or decorated with lightwork.agents.functions.tool",
            fix="def weather(city: str) -> str: ...",
        )
    return tools


def _is_offered(value: object, module: ModuleType) -> bool:
    if not inspect.isfunction(value) or value.__module__ != module.__name__:
        return False
    hinted = value.__annotations__
    return bool(hinted) and all(name in hinted for name in inspect.signature(value).parameters)


def _import(file: Path) -> ModuleType:
    """As a script would be: what lies beside it can be imported; what it prints is not shown."""
    name = f"lightwork_tools_{re.sub(r'[^0-9A-Za-z]', '_', file.stem)}"
    spec = spec_from_file_location(name, file) if file.is_file() and file.suffix == ".py" else None
    if spec is None or spec.loader is None:
        raise SpecError(f"there is no file {file} of Python", expected="a .py file", fix="check the path")
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    folder = str(file.resolve().parent)
    sys.path.insert(0, folder)
    try:
        with collecting(Note()):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise SpecError(
            f"{file} cannot be imported: {type(error).__name__}: {error}",
            expected="a file of functions",
            fix=f"python {file}",
        ) from error
    finally:
        sys.path.remove(folder)
    return module
