"""The command line: one file per verb, found by listing the folder and imported only when the verb is used.

To add a verb, add a file with a docstring (its first sentence is the line in `lightwork --help`) and a
`command` made by `@verb(...)`. Exit codes: 0 done, 1 failed, 2 misuse, 3 claim missed, 130 stopped by Ctrl-C.
stdout carries results only; progress and errors go to stderr.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    import click

    from lightwork.cli._output import show_error
    from lightwork.cli._verbs import lightwork
    from lightwork.errors import LightworkError, UsageError

    try:
        code = lightwork.main(argv, prog_name="lightwork", standalone_mode=False)
    except LightworkError as error:
        show_error(type(error).__name__, str(error))
        return 2 if isinstance(error, UsageError) else 1
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "lightwork"
        show_error("UsageError", f"{error.format_message().rstrip('.')}\n  try: {where} --help")
        return 2
    except click.ClickException as error:
        show_error("UsageError", error.format_message())
        return 2
    except (click.Abort, KeyboardInterrupt):
        show_error("Stopped", "by Ctrl-C")
        return 130
    return code if isinstance(code, int) else 0
