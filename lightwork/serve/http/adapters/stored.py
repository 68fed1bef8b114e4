"""Responses that are kept for those who go on from them: the latest, in memory, within stated limits.

A server that ends forgets them all, and so does room that is needed for later ones. Whoever asks for one that
is gone is told so: going on without what was said before would be another conversation.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightwork.serve.http.errors import HttpError

MAX_RESPONSES = 1000
MAX_BYTES = 64 << 20
"""Of the JSON of all, each with its whole conversation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A response as it was shown, and the conversation up to its end, as items of an input."""

    response: dict[str, Any]
    items: Sequence[dict[str, Any]]
    nbytes: int


class Stored:
    """The latest responses by id; one that is read is as good as new."""

    def __init__(self, *, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self.max_responses = max_responses
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, response: dict[str, Any], items: Sequence[dict[str, Any]]) -> None:
        """Keep a response; the oldest make room. One that is larger than all room is not kept."""
        kept = Kept(response=response, items=items, nbytes=len(json.dumps([response, items])))
        self._kept[response["id"]] = kept
        self.nbytes += kept.nbytes
        while len(self._kept) > self.max_responses or self.nbytes > self.max_bytes:
            self.nbytes -= self._kept.popitem(last=False)[1].nbytes

    def get(self, id: str, *, param: str | None = None) -> Kept:
        """Raises HttpError for one that is not kept: 404, or 400 if a field (param) of a request named it."""
        if id not in self._kept:
            raise HttpError(
                400 if param else 404,
                f"no response is kept under {id[:80]!r}",
                expected=f"one of the latest {self.max_responses:,} with store: true, of "
                f"{self.max_bytes / 1e6:.0f} MB together, since this server began",
                fix="send the whole conversation as input" if param else "",
                param=param,
                code="previous_response_not_found" if param else "response_not_found",
            )
        self._kept.move_to_end(id)
        return self._kept[id]

    def forget(self, id: str) -> None:
        """Raises HttpError for one that is not kept."""
        self.nbytes -= self.get(id).nbytes
        del self._kept[id]
