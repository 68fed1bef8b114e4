"""/v1/embeddings of a causal model: hidden states behind the last norm, pooled as its checkpoint says, of
unit length.

Without a word of it, it is the last token's state: so does vLLM with models that were not trained for
anything else. They are computed by the engines that serve, see `serve.embedding`.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import Request, Response

from lightwork.errors import BusyError, CapacityError
from lightwork.serve.embedding import Text, Vector
from lightwork.serve.http.errors import refused
from lightwork.serve.http.handling import Handling
from lightwork.serve.http.schemas import EmbeddingBody
from lightwork.serve.http.translate import Served, texts_of, token_lists

MOST_TEXTS = 2048
"""Of a request, as OpenAI has it: clients send a thousand."""


class Embeddings:
    """The handler."""

    def __init__(self, handling: Handling) -> None:
        self.handling = handling
        self.served = handling.served
        self._waiting = 0

    async def create(self, body: EmbeddingBody, request: Request) -> Response:
        headers = self.handling.begin(body, body.model)
        texts = await self.handling.translate(request, _texts, body, self.served)
        vectors = await self.handling.until_left(request, self._embed(texts))
        num_tokens = sum(len(text.tokens) for text in texts)
        written = await asyncio.to_thread(_reply, body, vectors, num_tokens)
        return Response(written, media_type="application/json", headers=headers)

    async def _embed(self, texts: Sequence[Text]) -> list[Vector]:
        """Raises BusyError where too many texts wait."""
        most = self.served.limits.max_waiting
        if self._waiting + len(texts) > most:
            raise BusyError(
                f"{self._waiting} texts wait to be embedded",
                expected=f"at most {most}",
                fix="send it again later",
            )
        self._waiting += len(texts)
        try:
            return await self.handling.service.embed(texts)
        finally:
            self._waiting -= len(texts)


def _texts(body: EmbeddingBody, served: Served) -> list[Text]:
    if body.dimensions is not None and body.dimensions not in served.dimensions:
        raise refused(
            "dimensions",
            f"is {body.dimensions}",
            expected=f"{_numbers(served.dimensions)}: what the model was trained for, as config.json says",
        )
    given = texts_of(body.input, "input", min(MOST_TEXTS, served.limits.max_waiting))
    found = token_lists(given, served, "input", add_special=body.add_special_tokens)
    if body.truncate_prompt_tokens is not None:
        found = [_cut(text, tokens, body, served) for text, tokens in zip(given, found, strict=True)]
    longest = max(map(len, found))
    if longest > served.limits.max_len:
        raise CapacityError(
            f"a text of the input has {longest} tokens",
            expected=f"at most {served.limits.max_len}",
            fix="shorten it, or send truncate_prompt_tokens: -1",
        )
    model = served.variants.get(body.model, "")
    return [Text(tokens, model, served.pooling) for tokens in found]


def _numbers(numbers: Sequence[int]) -> str:
    if isinstance(numbers, range):
        return f"{numbers[0]} to {numbers[-1]}"
    return " or ".join(map(str, numbers))


def _cut(text: str | list[int], tokens: list[int], body: EmbeddingBody, served: Served) -> list[int]:
    """A text of no more tokens than asked. Those that the tokenizer puts around it stay: the vector is often
    the state of the last of them."""
    asked, limit = body.truncate_prompt_tokens, served.limits.max_len
    assert asked is not None
    most = limit if asked == -1 else asked
    if len(tokens) <= most <= limit:
        return tokens
    own = served.tokenizer.encode(text) if isinstance(text, str) else tokens
    num_around = len(tokens) - len(own)
    begin = next((i for i in range(num_around + 1) if tokens[i : i + len(own)] == own), None)
    if begin is None:  # it writes a text otherwise where something is around it
        own, num_around, begin = tokens, 0, 0
    end, room = begin + len(own), most - num_around
    if room < 1 or most > limit:
        raise refused(
            "truncate_prompt_tokens",
            f"is {asked}",
            expected=f"-1, or {num_around + 1} to {limit}",
        )
    kept = own[-room:] if body.truncation_side == "left" else own[:room]
    return [*tokens[:begin], *kept, *tokens[end:]]


def _reply(body: EmbeddingBody, vectors: Sequence[Vector], num_tokens: int) -> str:
    """Vector by vector: nothing else runs while one is written."""
    shown = [
        _json({"object": "embedding", "index": i, "embedding": _written(vector, body)})
        for i, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    told = _json({"object": "list", "model": body.model, "usage": usage})
    return f'{told[:-1]},"data":[{",".join(shown)}]}}'


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _written(vector: Vector, body: EmbeddingBody) -> Any:
    """As many numbers as asked, of unit length together; or the base64 of their little-endian float32
    bytes."""
    unit = _unit(vector[: body.dimensions])
    if body.encoding_format == "base64":
        return base64.b64encode(unit.astype("<f4").tobytes()).decode()
    return unit.tolist()


def _unit(vector: Vector) -> Vector:
    """Of length 1; one without a direction stays what it is."""
    length = float(np.linalg.norm(vector))
    return vector / np.float32(length) if length else vector
