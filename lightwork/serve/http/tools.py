"""What a chat may call: whether a request's tools can be offered to this model."""

from __future__ import annotations

from lightwork.serve.http.calls import BEGIN, END
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
    if template is not None and body.reads_calls and ("tools" not in template or BEGIN not in template):
        why = "offers no tools" if "tools" not in template else "writes calls in a form that is not read here"
        raise HttpError(
            400,
            f"tools cannot be used: the chat template of this model {why}",
            expected=f"a template that uses tools and writes calls as {BEGIN}{{JSON}}{END}",
            fix='tool_choice "none", or another model',
            param="tools",
        )
