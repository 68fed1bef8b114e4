"""Talk to a model, in the terminal or in a pipe.

MODEL is served by a process that ends with the chat, or is the URL of a server that runs already, which is
sent the key in OPENAI_API_KEY if that is set. In a pipe, stdin is the prompt and stdout holds only the
answer. In the terminal: /reset /use /stats /save /quit.
"""

from __future__ import annotations

import sys

import click

from lightwork.cli import _completion, _options
from lightwork.cli._plan_file import choose
from lightwork.cli._verbs import verb


@verb("lightwork chat tiny:llama", "echo 'name three colours' | lightwork chat http://127.0.0.1:8000")
@click.argument("model", default="tiny:llama", shell_complete=_completion.model)
@_options.use
@_options.on("cpu", "Where it runs: cpu, cuda:0.")
@click.option("--system", help="A system message before the first prompt.")
@click.option("--max-tokens", type=click.IntRange(1), default=256, show_default=True, help="Per answer.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="Unset: what the server takes.")
@click.option("--seed", type=int, help="Of sampling: the same seed gives the same answer.")
def command(
    model: str,
    use: tuple[str, ...],
    on: str | None,
    system: str | None,
    max_tokens: int,
    temperature: float | None,
    seed: int | None,
) -> None:
    from lightwork.cli._chat import Chat
    from lightwork.cli._server import Server

    chosen = choose(model, on, use, "cpu")
    settings = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    with Server(model, use=chosen.use, on=chosen.on) as server:
        chat = Chat(server, system, {k: v for k, v in settings.items() if v is not None})
        if sys.stdin.isatty() and sys.stdout.isatty():
            from lightwork.cli._repl import repl

            repl(chat)
        else:
            chat.pipe(sys.stdin.read())
