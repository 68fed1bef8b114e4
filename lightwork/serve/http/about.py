"""What is served, how texts become tokens, and how the server is."""

from __future__ import annotations

from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from lightwork.serve.http.errors import refused
from lightwork.serve.http.handling import Handling
from lightwork.serve.http.metrics import Metrics
from lightwork.serve.http.schemas import DetokenizeBody, TokenizeBody
from lightwork.serve.http.translate import tokenize_ids


class About:
    """The handlers. created: Unix time the model was loaded."""

    def __init__(self, handling: Handling, metrics: Metrics, created: int) -> None:
        self.handling = handling
        self.served = handling.served
        self.metrics = metrics
        self.created = created

    async def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [self._model(name) for name in self.served.names]}

    def _model(self, name: str) -> dict[str, Any]:
        model = {"id": name, "object": "model", "created": self.created, "owned_by": "lightwork"}
        parent = {} if name == self.served.name else {"parent": self.served.name}
        return {**model, **parent, "max_model_len": self.served.limits.max_len}

    async def model(self, name: str) -> dict[str, Any]:
        self.handling.check_name(name)
        return self._model(name)

    async def tokenize(self, body: TokenizeBody, request: Request) -> Response:
        headers = self._begin(body)
        ids = await self.handling.translate(request, tokenize_ids, body, self.served)
        shown: dict[str, Any] = {
            "tokens": ids,
            "count": len(ids),
            "max_model_len": self.served.limits.max_len,
        }
        if body.return_token_strs:
            shown["token_strs"] = [self.served.tokenizer.token_text(t) for t in ids]
        return JSONResponse(shown, headers=headers)

    async def detokenize(self, body: DetokenizeBody, request: Request) -> Response:
        headers = self._begin(body)
        if not all(0 <= t < self.served.vocab_size for t in body.tokens):
            raise refused("tokens", "hold an unknown token", expected=f"0 to {self.served.vocab_size - 1}")
        text = await self.handling.translate(request, self.served.tokenizer.decode, body.tokens)
        return JSONResponse({"prompt": text}, headers=headers)

    def _begin(self, body: TokenizeBody | DetokenizeBody) -> dict[str, str]:
        if body.model is not None:
            self.handling.check_name(body.model)
        return self.handling.ignored(body)

    async def health(self) -> dict[str, str]:
        """As peers' users know it: whether to send requests here, and whether to leave the process alone."""
        self.handling.service.check_ready()
        return {"status": "alive"}

    async def ready(self) -> dict[str, str]:
        self.handling.service.check_ready()
        return {"status": "ready"}

    async def prometheus(self) -> Response:
        """Read as they are, not asked of the engine's thread, so that they come from a stuck one too."""
        text = self.metrics.text(*self.handling.service.engine.gauges)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")
