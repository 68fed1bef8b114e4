"""What a shell completes: techniques, models, places, systems; and bash, which breaks words at colons.

Click speaks the protocol of each shell. Nothing is imported to list names but the presets of models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class

Items = list[CompletionItem]
Complete = Callable[[click.Context, click.Parameter, str], Items]

BREAKS = ":="
PACKAGE = Path(__file__).parent.parent


def technique(kind: str = "") -> Complete:
    """Names of techniques, of one kind if it is given; also of one that is a field of another."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
        from lightwork.techniques import listing

        before, start = re.fullmatch(r"(.*[(=,+\s])?(\w*)", incomplete, re.DOTALL).groups()  # type: ignore[union-attr]
        known = [t for t in listing() if not kind or before or t.kind == kind]
        names = {f"{before or ''}{t.name}": t.summary for t in known}
        return _beginning(f"{before or ''}{start}", names)

    return complete


def kinds(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    from lightwork.techniques import listing

    return _beginning(incomplete, {t.kind: "" for t in listing()})


def model(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Built-in models, well-known shapes where those do, or what the file system has."""
    scheme, colon, rest = incomplete.partition(":")
    if scheme in ("hf", "gguf") and colon:
        return [CompletionItem(rest, type="dir" if scheme == "hf" else "file")]
    names = {f"tiny:{f.name}": "" for f in sorted((PACKAGE / "models" / "builtin").iterdir()) if f.is_dir()}
    if ctx.info_name in ("sim", "plan"):
        from lightwork.models.presets import PRESETS

        names |= {f"shape:{name}": "" for name in PRESETS}
    names |= {"hf:": "a Hugging Face folder", "gguf:": "a file of llama.cpp"}
    return _beginning(incomplete, names) or [CompletionItem(incomplete, type="file")]


def place(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Where it can run; how many devices stands behind: sim:h100x8."""
    presets = sorted((PACKAGE / "cluster" / "presets").glob("[!_]*.py"))
    simulated = {f"sim:{file.stem}": "simulated" for file in presets}
    real = {"cpu": "this machine", "cuda:0": "a GPU of this machine", "ray:": "a Ray cluster"}
    return _beginning(incomplete, simulated if ctx.info_name in ("sim", "plan") else real | simulated)


def system(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    from lightwork.claims.systems import SYSTEMS

    return _beginning(incomplete, {s.name: s.title for s in SYSTEMS})


def _beginning(text: str, names: dict[str, str]) -> Items:
    """Those that begin so, whatever the case; each with a word about it."""
    return [
        CompletionItem(name, help=words or None)
        for name, words in names.items()
        if name.lower().startswith(text.lower())
    ]


@add_completion_class
class WholeWords(BashComplete):
    """Readline breaks words at colons and equals signs, and puts what is chosen behind the last of them."""

    _before = ""

    def get_completion_args(self) -> tuple[list[str], str]:
        args, incomplete = super().get_completion_args()
        *whole, last = _joined([*args, incomplete])
        self._before = last.removesuffix(incomplete.lstrip(BREAKS)) if last != incomplete else ""
        return whole, last

    def format_completion(self, item: CompletionItem) -> str:
        before = self._before.rpartition("=")[2] if self._before.startswith("-") else self._before
        item.value = item.value.removeprefix(before)
        return super().format_completion(item)


def _joined(words: Iterable[str]) -> list[str]:
    """Words as they were typed: what stands before, at and behind a break is one."""
    joined: list[str] = []
    for word in words:
        if joined and (word[:1] in [*BREAKS] or joined[-1][-1:] in [*BREAKS]):
            joined[-1] += word
        else:
            joined.append(word)
    return joined
