"""/v1/embeddings of a causal model: hidden states behind the last norm, pooled as its checkpoint says, of
unit length.

Without a word of it, it is the last token's state: so does vLLM with models that were not trained for
anything else. They are computed by the engines that serve, see `serve.embedding`.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import Request, Response
from fastapi.responses import JSONResponse

from lightwork.errors import BusyError, CapacityError
from lightwork.serve.embedding import Text, Vector
from lightwork.serve.http.handling import Handling
from lightwork.serve.http.schemas import EmbeddingBody
from lightwork.serve.http.translate import Served, token_lists


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
        shown = [
            {"object": "embedding", "index": i, "embedding": _written(_unit(vector), body.encoding_format)}
            for i, vector in enumerate(vectors)
        ]
        reply = {
            "object": "list",
            "data": shown,
            "model": body.model,
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        }
        return JSONResponse(reply, headers=headers)

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
    texts = token_lists(body.input, served, "input", add_special=body.add_special_tokens)
    longest = max(map(len, texts))
    if longest > served.limits.max_len:
        raise CapacityError(
            f"a text of the input has {longest} tokens",
            expected=f"at most {served.limits.max_len}",
            fix="shorten it",
        )
    model = served.variants.get(body.model, "")
    return [Text(tokens, model, served.pooling) for tokens in texts]


def _unit(state: Vector) -> Vector:
    """A vector of length 1; one without a direction stays what it is."""
    length = float(np.linalg.norm(state))
    return state / np.float32(length) if length else state


def _written(vector: Vector, how: str) -> Any:
    """Numbers, or the base64 of their little-endian float32 bytes."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if how == "base64" else vector.tolist()
