"""The group of lazy verbs, and the decorator that makes one."""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from lightwork.cli import _completion  # noqa: F401  (bash is told there how words are broken)
from lightwork.errors import UsageError

MAX_OPTIONS = 12
EXAMPLES = ("lightwork demo", "lightwork serve tiny:llama --use 'Sarathi(chunk=256)'")
COMPLETION = (
    "Completion in the shell: put one of these into its start-up file\n"
    '  bash   eval "$(_LIGHTWORK_COMPLETE=bash_source lightwork)"\n'
    '  zsh    eval "$(_LIGHTWORK_COMPLETE=zsh_source lightwork)"\n'
    "  fish   _LIGHTWORK_COMPLETE=fish_source lightwork | source"
)


class Verb(click.Command):
    """A command whose help begins with examples."""

    examples: tuple[str, ...] = ()

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_examples(formatter, self.examples)
        super().format_help(ctx, formatter)


class Verbs(click.Group):
    """Verbs found by listing this folder; none is imported before it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_summaries())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _summaries():
            return None
        command: click.Command = import_module(f"lightwork.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in _summaries() and not name.startswith("-") and not ctx.resilient_parsing:
            from lightwork.techniques import nearest

            near = nearest(name, _summaries())
            known = ", ".join(_summaries())
            fix = f"lightwork {near}" if near else "lightwork --help"
            raise UsageError(f"no verb is called {name[:60]!r}", expected=near or known, fix=fix)
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_examples(formatter, EXAMPLES)
        super().format_help(ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(_summaries().items()))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_paragraph()
        formatter.write(COMPLETION + "\n")


def verb(*examples: str) -> Callable[[Callable[..., Any]], Verb]:
    """Make a function a verb named after its file, with its module's docstring as help."""

    def make(run: Callable[..., Any]) -> Verb:
        name = run.__module__.rpartition(".")[2]
        text = (import_module(run.__module__).__doc__ or "").strip()
        command = click.command(name, cls=Verb, help=text)(run)
        command.examples = examples
        return command

    return make


@click.group(cls=Verbs, context_settings={"max_content_width": 100}, no_args_is_help=True)
@click.version_option(package_name="lightwork", message="%(prog)s %(version)s")
def lightwork() -> None:
    """Run machine-learning work in parallel: serve, train and coordinate language models.

    The same techniques run on this machine, or in prediction on a cluster you do not have.
    """


@cache
def _summaries() -> dict[str, str]:
    """Each verb with the first sentence of its file, read without importing it."""
    found = {}
    for file in sorted(Path(__file__).parent.glob("[!_]*.py")):
        text = file.read_text(encoding="utf-8")
        found[file.stem] = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0].rstrip(".")
    return found


def _write_examples(formatter: click.HelpFormatter, examples: tuple[str, ...]) -> None:
    if examples:
        with formatter.section("Examples"):
            for line in examples:
                formatter.write_text(line)
        formatter.write_paragraph()
