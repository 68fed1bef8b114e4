"""A plan in writing: the text of a plan file, and a plan from what a trace says of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from lightwork.errors import SpecError
from lightwork.serve.plan import Plan


def plan_text(plan: Plan, comment: str = "") -> str:
    """What `serve` reads: every setting that is not left to be derived."""
    lines = [f"# {comment}"] if comment else []
    for field in fields(Plan):
        value = getattr(plan, field.name)
        if field.name == "use":
            value = [use if isinstance(use, str) else repr(use) for use in value]
        if value is not None:
            lines.append(f"{field.name} = {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def plan_of(told: Mapping[str, Any]) -> Plan:
    """The plan that a trace is about. Raises SpecError if it does not say."""
    if "model" not in told or "use" not in told:
        raise SpecError(
            "the trace does not say what was run",
            expected="one that serve or sim wrote",
            fix="lightwork sim tiny:llama --trace out.json",
        )
    names = {field.name for field in fields(Plan)} - {"use"}
    return Plan(use=tuple(told["use"]), **{name: told[name] for name in names & told.keys()})
