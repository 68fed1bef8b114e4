"""Answer a question with tools of yours: calls are planned, and begin while the plan is being written.

QUESTION is read from stdin if it is not given. --tools is a file of Python functions with type hints, or
world:LEVEL: tools and a question that tiny:llama was trained for (LEVEL 1 to 3; 4 is beyond it). --use
takes a program (LlmCompiler, Dta, ParallelCalls, React) and, where the model runs in this process,
techniques of the engine. On a terminal the plan is shown as it comes, then the calls and when they ran; in
a pipe only the answer.
"""

from __future__ import annotations

from pathlib import Path

import click

from lightwork.cli import _completion, _options
from lightwork.cli._verbs import verb


@verb(
    "lightwork agent --tools world:2",
    "lightwork agent 'which is taller?' --tools my_tools.py --model http://127.0.0.1:8000",
    "echo 'who wrote this?' | lightwork agent --tools my_tools.py --model hf:./qwen --use 'React()'",
)
@click.argument("question", required=False)
@click.option(
    "--tools", multiple=True, required=True, metavar="FILE.py", help="Tools, or world:LEVEL. Repeatable."
)
@click.option(
    "--model",
    default="tiny:llama",
    show_default=True,
    shell_complete=_completion.model,
    help="A model that runs in this process, or the URL of a server, which is sent OPENAI_API_KEY if set.",
)
@_options.use
@_options.on("cpu", "Where it runs: cpu, cuda:0.")
@click.option("--turns", type=click.IntRange(1), default=32, show_default=True, help="Of the model, at most.")
@click.option("--calls", type=click.IntRange(1), default=256, show_default=True, help="Of tools, at most.")
@_options.seed
@click.option("--show", is_flag=True, help="Show the plan and the calls in a pipe, too.")
@click.option(
    "--trace", type=click.Path(path_type=Path), metavar="FILE.json", help="Keep the run: a Chrome trace."
)
@_options.as_json
def command(
    question: str | None,
    tools: tuple[str, ...],
    model: str,
    use: tuple[str, ...],
    on: str | None,
    turns: int,
    calls: int,
    seed: int,
    show: bool,
    trace: Path | None,
    as_json: bool,
) -> int:
    import sys

    from lightwork.cli import _agent
    from lightwork.cli._output import show_error, show_json
    from lightwork.runtime.perfetto import write_chrome_trace

    shown = not as_json and (show or sys.stdout.isatty())
    asked = _agent.read(question, tools, seed)
    program, techniques = _agent.chosen(use)
    run = _agent.Run(asked, program, _agent.write if shown else None, turns=turns, calls=calls)
    run.answer(model, on, techniques)
    if trace is not None:
        write_chrome_trace(trace, [run.trace])
    if as_json:
        show_json(run.to_dict())
    elif shown:
        run.show()
    elif run.result.answer:
        print(run.result.answer)
    if not run.result.answer and not as_json:
        show_error("NoAnswer", run.result.why or "the model said nothing")
    return 0 if run.result.answer else 1
