"""List the techniques, or show one: its idea, cost, file, claims and a picture of a run.

With --matrix: which of them are tested together, two by two, and why others are refused.
"""

from __future__ import annotations

from typing import Any

import click

from lightwork.cli import _completion, _options
from lightwork.cli._output import show_json, show_table, wrapped
from lightwork.cli._verbs import verb
from lightwork.errors import MissingExtraError
from lightwork.techniques import Technique, find, listing, parse


@verb("lightwork techniques", "lightwork techniques Sarathi", "lightwork techniques --matrix")
@click.argument("name", required=False, shell_complete=_completion.technique())
@click.option(
    "--kind", shell_complete=_completion.kinds, help="Only techniques of this kind, e.g. scheduler."
)
@click.option("--matrix", is_flag=True, help="Which serve together; with NAME, those of one and why not.")
@_options.as_json
def command(name: str | None, kind: str | None, matrix: bool, as_json: bool) -> None:
    if matrix:
        if kind:
            raise click.BadParameter("--matrix is of all kinds", param_hint="--kind")
        from lightwork.cli._matrix import show_matrix

        show_matrix(find(name) if name else None, as_json)
        return
    if name:
        _show(find(name), as_json)
        return
    known = sorted({t.kind for t in listing()})
    if kind and kind not in known:
        raise click.BadParameter(f"{kind!r} is not one of {', '.join(known)}", param_hint="--kind")
    chosen = [t for t in listing() if kind in (None, t.kind)]
    if as_json:
        show_json(chosen)
    else:
        rows = [(t.kind, t.name, (t.summary.partition(":")[2] or t.summary).strip(". ")) for t in chosen]
        show_table(("kind", "technique", "in one sentence"), rows)


def _show(technique: Technique, as_json: bool) -> None:
    try:
        defaults = repr(parse(technique.name))
    except MissingExtraError as error:
        defaults = f"needs {error.expected}: {error.fix}"
    from lightwork.cli._pictures import picture

    drawn, verdicts = picture(technique), _verdicts(technique)
    if as_json:
        shown = drawn if isinstance(drawn, str) else drawn._asdict()
        show_json({"technique": technique, "use": defaults, "picture": shown, "verdicts": verdicts})
        return
    labels = ("kind", "paper", "idea", "shapes", "cost", "differs", "claims", "file")
    in_double_quotes = defaults.replace("'", '"')
    print(wrapped(technique.summary))
    for label in labels:
        if text := getattr(technique, label):
            print(wrapped(text, f"  {label:<8} "))
    print(f"  {'use':<8} --use '{in_double_quotes}'")
    for verdict in verdicts:
        told = "{title}: {measured:.4g}{unit}, paper {paper}, {mode}; {state}".format(**verdict)
        print(wrapped(told, f"  {verdict['system']:<8} "))
    if isinstance(drawn, str):
        print(wrapped(f"none: {drawn}", "  picture  "))
        return
    print(wrapped(drawn.title, "  picture  "))
    print("\n".join(drawn.lines))


def _verdicts(technique: Technique) -> list[dict[str, Any]]:
    """The first recorded verdict of each system that the technique's header names."""
    from lightwork.claims.results import load

    named = {name.strip() for name in technique.claims.split(",")}
    return [dict(s.verdicts[0]) for s in load() if s.system.name in named and s.verdicts]
