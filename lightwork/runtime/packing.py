"""Messages between the processes of one program as bytes: Refs and Futures among them arrive as such.

Only these processes write what is read here, on pipes of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from io import BytesIO
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

from lightwork.errors import LightworkError
from lightwork.runtime.futures import Future
from lightwork.runtime.refs import Ref, ref_to

if TYPE_CHECKING:
    from lightwork.runtime.mesh import Mesh

_READER: ContextVar[Mesh] = ContextVar("reader")


class _Packer(ForkingPickler):
    def __init__(self, buffer: BytesIO, mesh: Mesh, to: int, lent: list[Callable[[], object]]) -> None:
        super().__init__(buffer, 5)
        self._mesh = mesh
        self._to = to
        self._lent = lent

    def reducer_override(self, x: Any) -> Any:
        if isinstance(x, Ref):
            return (_ref, (x.place, x.cls, x.id))
        if isinstance(x, Future):
            if x.done:
                x.kernel.observed(x)
                return (_done, (x.value, None if x.error is None else portable(x.error)))
            handle, lend = self._mesh.handle(x, self._to)
            self._lent.append(lend)
            return (_pending, handle)
        return NotImplemented


def pack(mesh: Mesh, to: int, message: Any) -> bytes:
    """Raises whatever pickle does for what cannot be sent; then nothing has been lent."""
    buffer = BytesIO()
    lent: list[Callable[[], object]] = []
    _Packer(buffer, mesh, to, lent).dump(message)
    for lend in lent:
        lend()
    return buffer.getvalue()


def unpack(mesh: Mesh, data: bytes) -> Any:
    token = _READER.set(mesh)
    try:
        return ForkingPickler.loads(data)
    finally:
        _READER.reset(token)


def portable(error: BaseException) -> BaseException:
    """The error itself, if it can be read again elsewhere; else what it says."""
    try:
        ForkingPickler.loads(ForkingPickler.dumps(error))
    except Exception:
        return LightworkError(f"{type(error).__name__}: {error}")
    return error


def _ref(place: int, cls: type, id: int) -> Ref:
    return ref_to(cls)(_READER.get().desk(place), id)


def _done(value: Any, error: BaseException | None) -> Future:
    future = Future(_READER.get().kernel, "an answer")
    future.done, future.value, future.error = True, value, error
    return future


def _pending(owner: int, caller: int, number: int) -> Future:
    return _READER.get().arrive(owner, caller, number)
