"""Every error lightwork raises on purpose, as one tree.

LightworkError              says what was wrong, what was expected, what to do
├── UsageError              the caller's text or value is wrong (exit code 2, HTTP 400)
│   ├── SpecError           a technique, plan or URI that cannot be understood
│   ├── ConstraintError     what an output has to be cannot be enforced
│   └── RangeError          a value outside its limits
├── AccessDeniedError       somebody may not do this (HTTP 403)
├── CapacityError           the request can never fit: context, memory (HTTP 400)
├── CheckpointError         a model folder that cannot be loaded
├── BusyError               the queue is full; try again later (HTTP 429)
├── NotReadyError           the server takes no requests; another one may (HTTP 503)
├── RemoteError             another server cannot be reached, went away, or failed
├── MissingExtraError       an optional dependency is not installed
├── ActorLostError          an actor was killed, or is not there any more
│   └── HostLostError       with all others of its place
├── DeadlockError           nothing can run, and something still waits
└── InvariantError          lightwork broke a law of its own: a bug, please report it
"""

from __future__ import annotations


class LightworkError(Exception):
    """An error in three parts: what was wrong, what was expected, what to do about it."""

    def __init__(self, wrong: str, *, expected: str = "", fix: str = "") -> None:
        super().__init__(wrong)
        self.wrong = wrong
        self.expected = expected
        self.fix = fix

    def __str__(self) -> str:
        lines = [self.wrong]
        if self.expected:
            lines.append(f"  expected: {self.expected}")
        if self.fix:
            lines.append(f"  try: {self.fix}")
        return "\n".join(lines)


class UsageError(LightworkError):
    """The caller's text or value is wrong."""


class SpecError(UsageError):
    """A technique, plan or URI that cannot be understood."""


class ConstraintError(UsageError):
    """A schema or grammar that outputs cannot be held to."""


class RangeError(UsageError):
    """A value outside its limits."""


class AccessDeniedError(LightworkError):
    """Whoever asks may not do this, or nobody has confirmed it."""


class CapacityError(LightworkError):
    """The request can never fit in the model's context or in memory."""


class CheckpointError(LightworkError):
    """A model folder that cannot be loaded."""


class BusyError(LightworkError):
    """The queue is full; the same request may succeed later."""

    def __init__(self, wrong: str, *, retry_after_s: int = 1, expected: str = "", fix: str = "") -> None:
        super().__init__(wrong, expected=expected, fix=fix)
        self.retry_after_s = retry_after_s


class NotReadyError(LightworkError):
    """The server takes no requests, now or any more; another one may."""

    def __init__(self, wrong: str, *, retry_after_s: int = 1, expected: str = "", fix: str = "") -> None:
        super().__init__(wrong, expected=expected, fix=fix)
        self.retry_after_s = retry_after_s


class RemoteError(LightworkError):
    """Another server that we asked cannot be reached, went away, or failed."""


class MissingExtraError(LightworkError):
    """An optional dependency is not installed."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(
            f"{module} is not installed",
            expected=f"the extra {extra!r}",
            fix=f'pip install "lightwork[{extra}]"',
        )


class ActorLostError(LightworkError):
    """What an actor was asked has no answer: it was killed."""


class HostLostError(ActorLostError):
    """The process that an actor lived in is gone."""


class DeadlockError(LightworkError):
    """Nothing can run, and something still waits."""


class InvariantError(LightworkError):
    """lightwork broke a law of its own: a bug, please report it."""

    def __init__(
        self, wrong: str, *, expected: str = "", fix: str = "report this as a bug, with the command"
    ) -> None:
        super().__init__(wrong, expected=expected, fix=fix)
