"""Other APIs over chat: each translates its request into a `ChatBody`, and shows the reply in its own form.

responses.py    OpenAI's /v1/responses: the request; responses_reply.py: the reply and its events
messages.py     Anthropic's /v1/messages: the request; messages_reply.py: the reply and its events
stored.py       responses that others go on from
thinking.py     what a model thinks, apart from what it answers
running.py      what they share: one chat from its body to the reply's last event

To add one: a body with `chat()` and `Reply`, and its route in app.py.
"""

from __future__ import annotations

from typing import Any, Protocol

from lightwork.serve.calls import Piece
from lightwork.serve.service import Delta

Event = dict[str, Any]
"""What a stream shows at once; its "type" is the event's name."""


class Reply(Protocol):
    """A reply as it grows. Each call returns the events that a stream shows of it."""

    def begin(self) -> list[Event]: ...

    def add(self, piece: Piece) -> list[Event]: ...

    def end(self, last: Delta, reason: str) -> list[Event]:
        """last: the delta with the usage. reason: in the words of chat: stop, length, tool_calls."""
        ...

    def failed(self, error: dict[str, Any]) -> list[Event]:
        """error: what stands under "error" in an error's body."""
        ...

    def whole(self) -> dict[str, Any]:
        """The body of a reply that is not streamed; after `end`."""
        ...
