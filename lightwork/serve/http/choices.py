"""The `choices` of replies: one entry per continuation when whole, one per delta when streamed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightwork.decode.sampling import Pick
from lightwork.models.tokenizer import Tokenizer
from lightwork.serve.http import replies
from lightwork.serve.http.schemas import ChatBody, CompletionBody
from lightwork.serve.sequence import Request
from lightwork.serve.service import Delta


class ChatChoices:
    """Entries of a chat reply."""

    def __init__(self, body: ChatBody, tokenizer: Tokenizer) -> None:
        self._body = body
        self._tokenizer = tokenizer

    def whole(self, c: replies.Choice) -> dict[str, Any]:
        return {
            "index": c.index,
            "message": {"role": "assistant", "content": c.text, "refusal": None},
            "logprobs": self._logprobs(c.picks),
            "finish_reason": c.reason,
        }

    def opening(self) -> list[dict[str, Any]]:
        role = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        return [{"index": i, **role} for i in range(self._body.n)]

    def piece(self, delta: Delta, at: int) -> dict[str, Any] | None:
        logprobs = self._logprobs(delta.picks) if delta.picks else None
        reason = delta.reason
        if not delta.text and logprobs is None and reason is None:
            return None
        content = {"content": delta.text} if delta.text or reason is None else {}
        return {"index": at, "delta": content, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, picks: Sequence[Pick]) -> dict[str, Any] | None:
        return replies.chat_logprobs(picks, self._tokenizer) if self._body.logprobs else None


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
            self._shown_chars[at] = offset + sum(map(len, logprobs["tokens"]))
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
