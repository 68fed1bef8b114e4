"""Personas: the attributes of an agent as somebody one can picture, written by a model or from a template.

A model is asked to write name, gender, age and personality between two tags, and asked again, with another
seed, while it does not. Without a model a template lists the attributes; `Persona.source` tells which.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lightwork.agents.chat_model import ChatModel, ChatRequest, Message
from lightwork.agents.population import Population
from lightwork.errors import LightworkError
from lightwork.runtime.effects import Acquire
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.resources import Store

START, END = "<persona>", "</persona>"
FIELDS = ("name", "gender", "age", "personality")
RETRIES = 5
ASK = """Invent one person of whom all of this is true:
{attributes}
Write {start}, then one line each for "name:", "gender:", "age:" and "personality:", then {end}."""


@dataclass(frozen=True, slots=True)
class Persona:
    """text: what stands between the tags. tries: how often a model was asked; 0 by a template."""

    text: str
    source: Literal["model", "template"]
    tries: int


def template(attributes: Mapping[str, Any]) -> Persona:
    """The attributes, a line each."""
    return Persona(_lines(attributes), "template", 0)


async def expand(model: ChatModel, attributes: Mapping[str, Any], *, seed: int = 0) -> Persona:
    """Ask a model. Raises LightworkError with its last words if no try gives a whole persona."""
    ask = ASK.format(attributes=_lines(attributes) or "- (anybody)", start=START, end=END)
    text = ""
    for tried in range(1 + RETRIES):
        request = ChatRequest((Message("user", ask),), temperature=1.0, seed=seed * (1 + RETRIES) + tried)
        text = (await model.stream(request).reply()).text
        found = between(text)
        if found:
            return Persona(found, "model", tried + 1)
    raise LightworkError(
        f"{model.name} wrote no persona in {1 + RETRIES} tries; its last one was {text[:200]!r}",
        expected=f"{', '.join(FIELDS)} between {START} and {END}",
        fix="a larger model, or personas by a template",
    )


async def expand_all(
    kernel: Kernel, model: ChatModel | None, population: Population, *, at_once: int = 64
) -> list[Persona]:
    """A persona for every agent, in order. at_once: how many are asked for at the same time."""
    if model is None:
        return [template(population.attributes(i)) for i in range(len(population))]
    slots = Store("personas", at_once)

    async def one(agent: int) -> Persona:
        await Acquire(slots, 1)
        try:
            return await expand(model, population.attributes(agent), seed=kernel.seed + agent)
        finally:
            slots.release(kernel, 1)

    asked = [kernel.spawn(one(i), name=f"persona {i}") for i in range(len(population))]
    personas: list[Persona] = await kernel.gather(*asked)
    return personas


def between(text: str) -> str:
    """What stands between the first tags that hold all four fields; "" if none do."""
    for part in text.split(START)[1:]:
        inside, end, _ = part.partition(END)
        if end and all(re.search(rf"^\W*{field}\W*:\W*\w", inside, re.I | re.M) for field in FIELDS):
            return inside.strip()
    return ""


def _lines(attributes: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in attributes.items())
