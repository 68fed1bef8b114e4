"""The `choices` of replies: one entry per continuation when whole, one per delta when streamed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightwork.decode.sampling import Pick
from lightwork.models.tokenizer import Tokenizer
from lightwork.serve.calls import CallParser, Piece
from lightwork.serve.http import replies
from lightwork.serve.http.schemas import ChatBody, CompletionBody
from lightwork.serve.sequence import Request
from lightwork.serve.service import Delta


class ChatChoices:
    """Entries of a chat reply. Calls that are streamed are remembered, so one object serves one reply."""

    def __init__(self, body: ChatBody, tokenizer: Tokenizer) -> None:
        self._body = body
        self._tokenizer = tokenizer
        self._parsers = [CallParser(reads_calls=body.reads_calls) for _ in range(body.n)]

    def whole(self, c: replies.Choice) -> dict[str, Any]:
        parser = self._parsers[c.index]
        text, calls = _told([*parser.push(c.text), *parser.finish()])
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            message |= {"content": text or None, "tool_calls": [_without_index(call) for call in calls]}
        return {
            "index": c.index,
            "message": message,
            "logprobs": self._logprobs(c.picks),
            "finish_reason": None if c.reason is None else parser.reason(c.reason),
        }

    def opening(self) -> list[dict[str, Any]]:
        role = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        return [{"index": i, **role} for i in range(self._body.n)]

    def piece(self, delta: Delta, at: int) -> dict[str, Any] | None:
        parser, logprobs = self._parsers[at], self._logprobs(delta.picks) if delta.picks else None
        pieces = parser.push(delta.text)
        if delta.reason is not None:
            pieces += parser.finish()
        text, calls = _told(pieces)
        if not pieces and logprobs is None and delta.reason is None:
            return None
        new: dict[str, Any] = {"content": text} if text or not (calls or delta.reason) else {}
        if calls:
            new["tool_calls"] = calls
        reason = None if delta.reason is None else parser.reason(delta.reason)
        return {"index": at, "delta": new, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, picks: Sequence[Pick]) -> dict[str, Any] | None:
        if not self._body.logprobs:
            return None
        as_ids = self._body.return_tokens_as_token_ids
        return replies.chat_logprobs(picks, self._tokenizer, as_ids=as_ids)


def _told(pieces: Sequence[Piece]) -> tuple[str, list[dict[str, Any]]]:
    """Text, and OpenAI's entries of calls, each whole or what is new of it."""
    text, calls = "", dict[int, dict[str, Any]]()
    for piece in pieces:
        if isinstance(piece, str):
            text += piece
            continue
        call = calls.setdefault(piece.number, {"index": piece.number, "function": {"arguments": ""}})
        if piece.id:
            call |= {"id": piece.id, "type": "function", "function": {"name": piece.name, "arguments": ""}}
        call["function"]["arguments"] += piece.arguments
    return text, [*calls.values()]


def _without_index(call: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in call.items() if name != "index"}


class CompletionChoices:
    """Entries of a completion. What is streamed is remembered, so one object serves one reply."""

    def __init__(self, body: CompletionBody, requests: Sequence[Request], tokenizer: Tokenizer) -> None:
        self._body = body
        self._requests = requests
        self._tokenizer = tokenizer
        self._shown_chars: dict[int, int] = {}
        self._echoed: set[int] = set()

    def whole(self, c: replies.Choice) -> dict[str, Any]:
        body, prompt = self._body, self._requests[c.index // self._body.n].prompt
        picks, text = c.picks, c.text
        if body.echo:
            text = self._prompt_text(c.index) + text
            picks = [Pick(prompt[0]), *c.prompt_picks, *picks]
        shown: dict[str, Any] = {"index": c.index, "text": text, "finish_reason": c.reason, "logprobs": None}
        if body.logprobs is not None:
            shown["logprobs"] = replies.completion_logprobs(picks, self._tokenizer)
        if body.prompt_logprobs is not None:
            shown["prompt_logprobs"] = replies.prompt_logprobs(prompt, c.prompt_picks, self._tokenizer)
        return shown

    def piece(self, delta: Delta, at: int) -> dict[str, Any] | None:
        text = delta.text
        if self._body.echo and at not in self._echoed:
            self._echoed.add(at)
            text = self._prompt_text(at) + text
        reason = delta.reason
        logprobs = None
        if self._body.logprobs is not None and delta.picks:
            offset = self._shown_chars.get(at, 0)
            logprobs = replies.completion_logprobs(delta.picks, self._tokenizer, offset)
            texts = map(self._tokenizer.token_text, (pick.token for pick in delta.picks))
            self._shown_chars[at] = offset + sum(map(len, texts))
        if not text and logprobs is None and reason is None:
            return None
        return {"index": at, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _prompt_text(self, at: int) -> str:
        """The prompt as it was sent: tokens that the tokenizer put around a text are not part of it."""
        number, given = at // self._body.n, self._body.prompt
        if isinstance(given, str):
            return given
        sent = given[number]
        return sent if isinstance(sent, str) else self._tokenizer.decode(self._requests[number].prompt)
