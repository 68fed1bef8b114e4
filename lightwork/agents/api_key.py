"""The key that a server behind a URL wants: where it comes from, and how it is sent. Nothing shows it."""

from __future__ import annotations

import os

from lightwork.errors import UsageError


def api_key() -> str | None:
    """The key in OPENAI_API_KEY, which OpenAI's own clients and vLLM's read, too; None if it holds none."""
    return os.environ.get("OPENAI_API_KEY", "").strip() or None


def bearer(key: str | None) -> dict[str, str]:
    """The header that carries it, if there is one. Raises UsageError for what no header can carry."""
    if not key:
        return {}
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UsageError("the API key cannot be sent", expected="printable ASCII without spaces")
    return {"authorization": f"Bearer {key}"}
