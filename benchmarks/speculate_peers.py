"""Guessed tokens beside other programs' guesses: same models, same chats, as many guesses at a time.

    python benchmarks/speculate_peers.py --peers ENVIRONMENTS --work FOLDER

The environments are those of `serve_peers.py` (`benchmarks/peers/README.md`), with the same workers. The
built-in models answer one request after another, greedily, in float32 on one thread: plain, with guesses that
are looked up in the text, and with those of a draft model. stdout has one JSON line per cell and peer, stderr
the table; a ratio above one says that lightwork is better. With `--save` each row is kept for
`lightwork bench speculate`.

Tokens per step: of all tokens, prompts among the steps. lightwork's are counted with all rows that its
proposer can use, as its peers take no others, and timed with those that pay.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import median

from _report import report
from peers.cells import Row, agreement, interleaved
from peers.convert import prepared
from peers.engines import LIGHTWORK, PEERS, Engine
from peers.process import PeerError, Worker

from lightwork.claims.peers import EVERY_CELL, keep, load
from lightwork.claims.speculate import MAX_LEN, PLAIN, RECORD, TARGET, TASKS, Run, prompts, served
from lightwork.home import home
from lightwork.models import resolve

K, WEIGHTS, DRAFT = 4, "f32", "tiny:draft"
WAYS = {PLAIN: PLAIN, "lookup": f"Ngram(k={K})", "draft": f"DraftModel(k={K})"}
"""Each way of guessing with lightwork's proposer of that kind."""
GUESSES = (WAYS["lookup"], WAYS["draft"], "Cascade()")
STEPS = {task: [f"{task} {way} steps" for way in WAYS] for task in TASKS}
NAMES = ("transformers", "openvino")


@dataclass(frozen=True, slots=True)
class Answers:
    """What the target says to a set of chats, without the token that ends a text: so no program has to be
    told to stop there, or not to.
    """

    prompts: list[list[int]]
    texts: list[list[int]]

    @property
    def lengths(self) -> list[int]:
        return [*map(len, self.texts)]


@cache
def answers(task: str, number: int) -> Answers:
    asked = prompts(task, number)
    with served(PLAIN) as ask:
        return Answers([[*p] for p in asked], [text[:-1] for text in ask(asked).texts])


@cache
def counted(use: str, task: str, pairs: int) -> list[Run]:
    """lightwork with all rows, on each set of chats. Raises PeerError if a text is another than without."""
    with served(use, all_rows=True) as ask:
        runs = [ask(prompts(task, i), answers(task, i).lengths) for i in range(pairs)]
    if [run.texts for run in runs] != [answers(task, i).texts for i in range(pairs)]:
        raise PeerError(f"{use} changed a text")
    return runs


@dataclass(frozen=True, slots=True)
class Bench:
    """How engines are started."""

    options: argparse.Namespace

    def model(self, engine: Engine, uri: str) -> Path:
        """The files of a built-in model that an engine reads, made once."""
        folder = Path(self.options.work) / uri.partition(":")[2]
        if not (folder / "hf").is_dir():
            shutil.copytree(resolve(uri), folder / "hf")
        return prepared(engine, WEIGHTS, folder, self.options.peers)

    def worker(self, engine: Engine, way: str) -> Worker:
        ours = engine is LIGHTWORK
        told = {
            "model": str(self.model(engine, TARGET)),
            "weights": WEIGHTS,
            "threads": self.options.threads,
            "seqs": 1,
            "kv_tokens": 2 * MAX_LEN,
            "max_len": MAX_LEN,
            "use": [WAYS[way]] if ours and way != PLAIN else [],
            "guesses": "" if ours or way == PLAIN else way,
            "draft": "" if ours else str(self.model(engine, DRAFT)),
            "k": K,
        }
        log = Path(self.options.work) / f"{engine.name}-{way}.log"
        environment = engine.environment(self.options.threads, spins=0)
        return Worker(engine, engine.python(self.options.peers), log, environment, told)

    def rows(self, peer: Engine, way: str) -> Iterator[tuple[Row, dict[str, dict[str, str]]]]:
        """Of every task tokens per second and, with guesses, tokens per step."""
        with self.worker(LIGHTWORK, way) as ours, self.worker(peer, way) as theirs:
            versions = {LIGHTWORK.name: ours.versions, peer.name: theirs.versions}
            for task in TASKS:
                speed, steps = compared(ours, theirs, task, way, self.options.pairs)
                yield speed, versions
                if way != PLAIN:
                    yield steps, versions


def compared(ours: Worker, theirs: Worker, task: str, way: str, pairs: int) -> tuple[Row, Row]:
    """Tokens per second after the first, and tokens per step: of both engines in all pairs, each pair with
    chats of its own."""
    taken: list[int] = []

    def run(worker: Worker, number: int) -> tuple[float, list[list[int]]]:
        asked = answers(task, number)
        ones = [1] * len(asked.prompts)
        before_s, _ = worker.generate(asked.prompts, ones)
        steps = worker.steps
        all_s, tokens = worker.generate(asked.prompts, asked.lengths)
        if worker is theirs:
            taken.append(worker.steps - steps)
        after_s, _ = worker.generate(asked.prompts, ones)
        return (sum(asked.lengths) - len(ones)) / (all_s - min(before_s, after_s)), tokens

    for worker in (ours, theirs):
        run(worker, pairs)  # nothing is compiled or allocated later
    taken.clear()
    a, b = interleaved(lambda i: run(ours, i), lambda i: run(theirs, i), pairs)
    agree = agreement([t for _, texts in a for t in texts], [t for _, texts in b for t in texts])
    speed = Row(name=f"{task} {way}", unit="tokens/s", higher=True, agree=agree)
    speed.ours, speed.theirs = [s for s, _ in a], [s for s, _ in b]
    steps = Row(name=f"{task} {way} steps", unit="tokens/step", higher=True, agree=agree)
    if way != PLAIN:
        steps.ours = [run.tokens_per_step for run in counted(WAYS[way], task, pairs)]
        steps.theirs = [sum(answers(task, i).lengths) / n for i, n in enumerate(taken)]
    return speed, steps


def best(rows: list[Row], task: str, pairs: int) -> tuple[str, Row]:
    """Of a task the most tokens per step of both sides, whoever guesses; and who that is of ours."""
    theirs = max((r for r in rows if r.name in STEPS[task]), key=lambda r: median(r.theirs))
    runs = {use: [run.tokens_per_step for run in counted(use, task, pairs)] for use in GUESSES}
    use = max(runs, key=lambda use: median(runs[use]))
    return use, replace(theirs, name=f"{task} best steps", ours=runs[use])


def compare(bench: Bench, peer: Engine) -> None:
    """Show and report all rows of one peer; an engine that fails ends them, with the reason."""
    found: list[Row] = []
    try:
        for way, use in WAYS.items():
            for row, versions in bench.rows(peer, way):
                found.append(row)
                show_row(bench, peer, use, row, versions)
        for task in TASKS:
            use, row = best(found, task, bench.options.pairs)
            show_row(bench, peer, use, row, versions)
    except (PeerError, RuntimeError) as error:
        print(f"absent {peer.name}: {error}", file=sys.stderr, flush=True)
        write(bench, peer, cell=EVERY_CELL, absent=str(error))


def show_row(bench: Bench, peer: Engine, use: str, row: Row, versions: dict[str, dict[str, str]]) -> None:
    middle, low, high = row.summary()
    ours, theirs = median(row.ours), median(row.theirs)
    print(
        f"{row.name:<21} {ours:>8.4g} : {theirs:<8.4g} {row.unit:<11} {middle:6.2f}x {peer.name:<12}"
        f" [{low:.2f}, {high:.2f}]  n={len(row.ours)}  equal {row.agree:.1%}",
        file=sys.stderr,
        flush=True,
    )
    write(
        bench,
        peer,
        cell=row.name,
        use=[use] if use != PLAIN else [],
        unit=row.unit,
        lightwork=round(ours, 4),
        peer_figure=round(theirs, 4),
        ratio=round(middle, 4),
        ratio_min=round(low, 4),
        ratio_max=round(high, 4),
        pairs=len(row.ours),
        equal_tokens=row.agree,
        versions=versions,
    )


def write(bench: Bench, peer: Engine, **figures: object) -> None:
    """Report one row, and with --save keep it before anything else is measured."""
    named = {"shape": TARGET, "weights": WEIGHTS, "peer": peer.name, "engine_threads": bench.options.threads}
    row = report("speculate_peers", **named, **figures)
    if bench.options.save:
        keep(row, RECORD)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--peers", type=Path, default=home() / "peers", help="folder with one environment per peer"
    )
    parser.add_argument(
        "--work", type=Path, default=home() / "speculate-work", help="folder for checkpoints and logs"
    )
    parser.add_argument("--only", choices=NAMES, default=list(NAMES), nargs="+", metavar="NAME")
    parser.add_argument("--threads", type=int, default=1, help="of each engine")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--save", action="store_true", help="keep the rows for `lightwork bench speculate`")
    options = parser.parse_args()
    if options.save:
        load(RECORD)  # a record that cannot be read is to be known before anything is measured
    for name in options.only:
        compare(Bench(options), PEERS[name])


if __name__ == "__main__":
    main()
