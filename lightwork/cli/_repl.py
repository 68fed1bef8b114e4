"""`lightwork chat` in a terminal: history, pasted blocks, streamed answers, five commands, a status line.

Text that is pasted is one prompt, line ends and all, as terminals say where it begins and ends.
"""

from __future__ import annotations

import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lightwork.cli._chat import Chat
from lightwork.cli._gauges import Gauges
from lightwork.cli._output import paint, show_error
from lightwork.errors import LightworkError, MissingExtraError, SpecError
from lightwork.home import home

if TYPE_CHECKING:
    from prompt_toolkit.history import History

COMMANDS = {
    "/reset": "forget the conversation",
    "/use": "serve again with these techniques, e.g. /use Ngram(k=4)",
    "/stats": "tokens, tokens/s, ttft and accepted drafts so far",
    "/save": "write the conversation to a file, e.g. /save chat.json",
    "/quit": "leave (so does Ctrl-D)",
}


def repl(chat: Chat) -> None:
    """Read prompts and commands until /quit or Ctrl-D. Ctrl-C stops an answer, or clears the line."""
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.styles import Style
    except ModuleNotFoundError as error:
        raise MissingExtraError("prompt_toolkit", "serve") from error
    print(paint(f"{chat.server.model} at {chat.server.url}   " + " ".join(COMMANDS), "2", sys.stdout))
    with Gauges(chat) as gauges:
        session: PromptSession[str] = PromptSession(
            completer=WordCompleter(list(COMMANDS), sentence=True),
            complete_while_typing=False,
            history=kept_history(),
            bottom_toolbar=lambda: gauges.line,
            refresh_interval=gauges.EVERY_S,
            style=Style.from_dict({"bottom-toolbar": "noreverse ansibrightblack"}),
        )
        while True:
            try:
                text = session.prompt("> ").strip()
            except KeyboardInterrupt:
                continue
            except EOFError:
                break
            if not _did(chat, text):
                break
    print(paint(chat.total.line(), "2", sys.stdout))


def _did(chat: Chat, text: str) -> bool:
    """Obey or ask, and show what goes wrong. False: leave."""
    try:
        if text.startswith("/"):
            return obey(chat, text)
        if text:
            answer(chat, text)
    except LightworkError as error:
        show_error(type(error).__name__, str(error))
    return True


def kept_history() -> History:
    """What was typed in earlier chats, in a file for its owner's eyes only; this chat's alone if there can be
    none."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class Kept(FileHistory):
        """A disk that fills up ends no chat."""

        def store_string(self, string: str) -> None:
            with suppress(OSError):
                super().store_string(string)

    place = home() / "chat-history"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return Kept(str(place))


def answer(chat: Chat, prompt: str) -> None:
    """Print an answer as it comes, then what it took. Ctrl-C leaves it out of the conversation."""
    with closing(chat.ask(prompt)) as pieces:
        try:
            for piece in pieces:
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            print(paint("  stopped", "2", sys.stdout))
            return
    print()
    print(paint(chat.last.line(), "2", sys.stdout))


def obey(chat: Chat, text: str) -> bool:
    """Carry a command out. False: leave."""
    command, _, rest = text.partition(" ")
    match command:
        case "/quit":
            return False
        case "/reset":
            chat.reset()
        case "/stats":
            print(chat.total.line())
        case "/save":
            path = Path(rest.strip() or "chat.json")
            chat.save(path)
            print(f"saved {path}")
        case "/use":
            from lightwork.techniques import parse_all

            techniques = split_techniques(rest)
            parse_all(techniques)
            chat.server.restart(techniques)
            print(f"serving again with {', '.join(techniques) or 'no techniques'}")
        case _:
            from lightwork.techniques import nearest

            near = nearest(command, COMMANDS)
            raise SpecError(
                f"no command is called {command[:40]!r}", expected=near or " ".join(COMMANDS), fix=near
            )
    return True


def split_techniques(text: str) -> list[str]:
    """The techniques of a line, which are separated by spaces outside parentheses and quotes."""
    parts, start, depth, quote = [], 0, 0, ""
    for i, char in enumerate(f"{text} "):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "()":
            depth += 1 if char == "(" else -1
        elif char == " " and depth <= 0:
            parts.append(text[start:i].strip())
            start = i
    return [part for part in parts if part]
