"""Who may do what: privilege groups, and a record of everything that was refused."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import NamedTuple, NoReturn

from lightwork.errors import AccessDeniedError

_log = logging.getLogger(__name__)


class Denial(NamedTuple):
    """At which time of the kernel an agent was refused what."""

    at_s: float
    agent: str
    wanted: str


class Access:
    """groups: of agents, by name. Members may read each other's memory and files; nobody writes another's.
    tools: of some tools, the group that may call them; everybody may call the others.

    denials: the latest `keep` that were refused, in order.
    """

    def __init__(
        self,
        groups: Mapping[str, Collection[str]] | None = None,
        tools: Mapping[str, str] | None = None,
        *,
        keep: int = 10_000,
    ) -> None:
        self._tools = dict(tools or {})
        self._groups: dict[str, set[str]] = {}
        for group, members in (groups or {}).items():
            for agent in members:
                self._groups.setdefault(agent, set()).add(group)
        self._keep = keep
        self.denials: list[Denial] = []

    def groups(self, agent: str) -> frozenset[str]:
        return frozenset(self._groups.get(agent, ()))

    def check_read(self, agent: str, owner: str, what: str, now_s: float) -> None:
        """Raises AccessDeniedError unless the agent owns it, or is in a group with who does."""
        if agent != owner and not self.groups(agent) & self.groups(owner):
            self.refuse(agent, f"{what} of {owner!r}", f"{owner!r}, or a member of its groups", now_s)

    def check_call(self, agent: str, tool: str, now_s: float) -> None:
        """Raises AccessDeniedError unless the agent may call the tool."""
        group = self._tools.get(tool)
        if group is not None and group not in self.groups(agent):
            self.refuse(agent, tool, f"a member of {group!r}", now_s)

    def refuse(self, agent: str, wanted: str, expected: str, now_s: float) -> NoReturn:
        """Record a refusal, and raise it: AccessDeniedError."""
        self.denials.append(Denial(now_s, agent, wanted))
        del self.denials[: -self._keep]
        _log.warning("%s is refused %s", agent, wanted)
        raise AccessDeniedError(f"{agent!r} may not do this: {wanted}", expected=expected)
