"""What a chat may call: whether a request's tools can be offered to this model."""

from __future__ import annotations

from lightwork.errors import UsageError
from lightwork.serve.call_grammar import check_template
from lightwork.serve.http.errors import HttpError, refused
from lightwork.serve.http.schemas import ChatBody, NamedChoice


def check_tools(body: ChatBody, template: str | None) -> None:
    """Raises HttpError for tools that cannot be offered, and for a choice among tools that are not there."""
    names = [tool.function.name for tool in body.tools or ()]
    if not names:
        if body.tool_choice not in (None, "none", "auto"):
            raise refused("tool_choice", "needs tools", expected="tools to choose among")
        return
    if len(set(names)) < len(names):
        raise refused("tools", "hold two functions of one name", expected="names of their own")
    if isinstance(body.tool_choice, NamedChoice) and body.tool_choice.function.name not in names:
        wrong = body.tool_choice.function.name
        raise refused("tool_choice", f"names {wrong[:80]!r}", expected=" or ".join(names[:20]))
    if body.reads_calls:
        try:
            check_template(template)
        except UsageError as error:
            fix = 'tool_choice "none", or another model'
            raise HttpError(400, error.wrong, expected=error.expected, fix=fix, param="tools") from error
