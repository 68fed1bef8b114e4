"""lightwork against the engines people use: same checkpoint, same prompts, interleaved, in one run.

    python benchmarks/serve_peers.py --peers ENVIRONMENTS --work FOLDER

ENVIRONMENTS holds one virtual environment per peer (`benchmarks/peers/README.md` says how they are made and
what each cell measures). stdout has one JSON line per cell and peer, stderr the table. A ratio above one says
that lightwork is better. With `--save` each row takes the place of the older one in
`lightwork/claims/peers.json`, which `lightwork bench` prints, as soon as it is measured.

The defaults are for 34M. `--cells`, `--weights`, `--only` and `--pairs` make it shorter: 3 pairs of decode,
prefill and memory in f32 took two and a half minutes for five peers, conversions included, on a busy machine.
Checkpoints and conversions are kept in FOLDER: 25 GB for 1.1B.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from _report import report
from peers import cells
from peers.cells import Load, Row
from peers.convert import prepared
from peers.engines import LIGHTWORK, LIGHTWORK_USE, PEERS, SPINS, WEIGHTS, Engine, Serving
from peers.limits import read_bandwidth, step_bytes
from peers.process import PeerError, Worker
from peers.shapes import SHAPES, Shape, write_checkpoint
from peers.streams import Server, evict, free_port

from lightwork.claims.peers import EVERY_CELL, keep, load
from lightwork.home import home

Versions = dict[str, dict[str, str]]
"""Of each engine, its own and its libraries'."""

CELLS = ("decode", "prefill", "batch", "staggered", "memory", "documents", "http", "start")
SIZES = ("output", "prefill", "requests", "streams")
OFFLINE = {
    "decode": cells.decode,
    "prefill": cells.prefill,
    "batch": cells.batch,
    "staggered": cells.staggered,
    "memory": cells.memory,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """One shape with one weight type."""

    options: argparse.Namespace
    shape_name: str
    weights: str
    load: Load

    @property
    def shape(self) -> Shape:
        return SHAPES[self.shape_name]

    @property
    def use(self) -> tuple[str, ...]:
        """lightwork's techniques for these weights."""
        asked: dict[str, tuple[str, ...]] = dict(self.options.use)
        return asked.get(self.weights, LIGHTWORK_USE[self.weights])

    @property
    def folder(self) -> Path:
        return Path(self.options.work) / self.shape_name

    def limits(self) -> dict[str, int]:
        seqs = max(self.load.requests, self.load.streams)
        sizes = {"seqs": seqs, "kv_tokens": self.load.kv_tokens(), "max_len": self.shape.max_len}
        return {"threads": self.options.threads, **sizes}

    def model(self, engine: Engine) -> Path:
        return prepared(engine, self.weights, self.folder, self.options.peers)

    def log(self, engine: Engine, what: str) -> Path:
        return self.folder / f"{engine.name}-{self.weights}-{what}.log"

    def environment(self, engine: Engine) -> dict[str, str]:
        return engine.environment(self.options.threads, self.options.spins)

    def worker(self, engine: Engine, **more: Any) -> Worker:
        """more: what else, or other than usual, the engine is told."""
        use = self.use if engine is LIGHTWORK else ()
        told = {
            "model": str(self.model(engine)),
            "weights": self.weights,
            "use": use,
            **self.limits(),
            **more,
        }
        python = engine.python(self.options.peers)
        return Worker(engine, python, self.log(engine, "worker"), self.environment(engine), told)

    def server(self, engine: Engine) -> Server:
        serving = Serving(
            python=str(engine.python(self.options.peers)),
            model=self.model(engine),
            weights=self.weights,
            port=free_port(),
            use=self.use if engine is LIGHTWORK else (),
            **self.limits(),
        )
        return Server(engine, serving, self.log(engine, "server"), self.environment(engine))

    def rows(self, peer: Engine) -> Iterator[tuple[Row, Versions]]:
        """All cells against one peer, each with the versions. Raises PeerError where an engine fails."""
        chosen = self.options.cells
        with self.worker(LIGHTWORK):
            pass  # its weights are converted apart, as the peers' files were
        with self.worker(LIGHTWORK) as ours, self.worker(peer) as theirs:
            versions = {LIGHTWORK.name: ours.versions, peer.name: theirs.versions}
            show(" against ".join(_listed(v) for v in versions.values()))
            for name in (c for c in OFFLINE if c in chosen and (c != "staggered" or peer.staggers)):
                yield from ((row, versions) for row in OFFLINE[name](ours, theirs, self.load))
        if "documents" in chosen:
            told = {"prefixes": True, "kv_tokens": cells.DOCUMENTS_KV_TOKENS}
            grouped = (*self.use, "PrefixGroups()")
            with self.worker(LIGHTWORK, **told, use=grouped) as ours, self.worker(peer, **told) as theirs:
                yield from ((row, versions) for row in cells.documents(ours, theirs, self.load))
        if "http" in chosen and peer.server is not None:
            with self.server(LIGHTWORK) as our_server, self.server(peer) as their_server:
                yield from ((row, versions) for row in cells.streams(our_server, their_server, self.load))
        if "start" in chosen:
            yield from ((row, versions) for row in self._starts(peer))

    def _starts(self, peer: Engine) -> list[Row]:
        def drop() -> None:
            evict(self.model(LIGHTWORK))
            evict(self.model(peer))

        return cells.starts(lambda: self.worker(LIGHTWORK), lambda: self.worker(peer), drop, self.load)

    def bandwidth_limit(self) -> float:
        """Tokens per second if decoding only read its bytes."""
        context = self.load.prompt + self.load.output // 2
        size = step_bytes(self.shape, self.weights, context)
        return read_bandwidth(size, self.options.threads) / size


def show(*parts: str) -> None:
    print(*parts, file=sys.stderr, flush=True)


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def show_row(bench: Bench, peer: Engine, row: Row, versions: Versions, limit: float | None) -> None:
    middle, low, high = row.summary()
    ours, theirs = median(row.ours), median(row.theirs)
    same = "" if row.agree is None else f"  equal {row.agree:.0%}"
    share = "" if limit is None else f"  of limit {ours / limit:.0%} : {theirs / limit:.0%}"
    show(
        f"{row.name:<14} {bench.shape_name:<5} {bench.weights:<5} {ours:>9.4g} : {theirs:<9.4g} {row.unit:<9}"
        f" {middle:6.2f}x {peer.name:<12} [{low:.2f}, {high:.2f}]  n={len(row.ours)}{same}{share}"
    )
    _write(
        bench,
        peer,
        cell=row.name,
        use=list(bench.use),
        unit=row.unit,
        lightwork=round(ours, 4),
        peer_figure=round(theirs, 4),
        ratio=round(middle, 4),
        ratio_min=round(low, 4),
        ratio_max=round(high, 4),
        pairs=len(row.ours),
        equal_tokens=row.agree,
        limit=limit and round(limit, 2),
        versions=versions,
    )


def _write(bench: Bench, peer: Engine, **figures: Any) -> None:
    """Report one row, and with --save keep it, before anything else is measured."""
    row = report(
        "serve_peers",
        shape=bench.shape_name,
        weights=bench.weights,
        peer=peer.name,
        engine_threads=bench.options.threads,
        **figures,
    )
    if bench.options.save:
        keep(row)


def compare(bench: Bench, peer: Engine, best: dict[tuple[str, ...], tuple[float, str]]) -> None:
    """Run, show and report all cells against one peer; an engine that fails ends them, with the reason."""
    if not peer.python(bench.options.peers).is_file():
        _absent(bench, peer, f"no environment {bench.options.peers / peer.venv}")
    elif bench.weights not in peer.files:
        _absent(bench, peer, f"has no {bench.weights} weights on this CPU")
    else:
        try:
            for row, versions in bench.rows(peer):
                limit = bench.bandwidth_limit() if row.name == "decode" else None
                show_row(bench, peer, row, versions, limit)
                key, ratio = (row.name, bench.shape_name, bench.weights), row.summary()[0]
                best[key] = min(best.get(key, (ratio, peer.name)), (ratio, peer.name))
            if "http" in bench.options.cells and peer.server is None:
                _absent(bench, peer, "has no server of its own", cell="http")
        except (PeerError, RuntimeError) as error:
            _absent(bench, peer, str(error))


def _absent(bench: Bench, peer: Engine, reason: str, cell: str = EVERY_CELL) -> None:
    show(f"absent         {bench.shape_name:<5} {bench.weights:<5} {peer.name}: {reason}")
    _write(bench, peer, cell=cell, absent=reason)


def _use(text: str) -> tuple[str, tuple[str, ...]]:
    """`8bit=Quant(bits=8)+Sarathi(chunk=256)`, or `8bit=plain` for none."""
    weights, _, techniques = text.partition("=")
    if weights not in WEIGHTS or not techniques:
        raise argparse.ArgumentTypeError(f"{text!r} is not WEIGHTS=TECHNIQUE+TECHNIQUE or WEIGHTS=plain")
    return weights, () if techniques == "plain" else tuple(techniques.split("+"))


def _options() -> argparse.Namespace:
    text = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=text)
    several = {"nargs": "+", "metavar": "NAME"}
    parser.add_argument(
        "--peers", type=Path, default=home() / "peers", help="folder with one environment per peer"
    )
    parser.add_argument(
        "--work", type=Path, default=home() / "peers-work", help="folder for checkpoints, made once, and logs"
    )
    parser.add_argument("--shape", choices=SHAPES, default=["34M"], **several)
    parser.add_argument("--weights", choices=WEIGHTS, default=list(WEIGHTS), **several)
    parser.add_argument("--cells", choices=CELLS, default=list(CELLS), **several)
    parser.add_argument("--only", choices=PEERS, default=list(PEERS), help="these peers", **several)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each engine")
    parser.add_argument(
        "--spins", type=int, default=SPINS, help="of a barrier; 0 on a machine that is shared"
    )
    parser.add_argument("--use", type=_use, default=[], help="WEIGHTS=TECHNIQUES of lightwork", **several)
    parser.add_argument("--save", action="store_true", help="keep the rows for `lightwork bench`")
    for name in ("pairs", *SIZES):
        parser.add_argument(f"--{name}", type=int, default=Load.__dataclass_fields__[name].default)
    options = parser.parse_args()
    if options.save and (other := [n for n in SIZES if getattr(options, n) != parser.get_default(n)]):
        parser.error(f"--save keeps cells of the published sizes only: leave out --{other[0]}")
    return options


def main() -> None:
    # Ended by a signal, the children are still to be ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = _options()
    if options.save:
        load()  # a record that cannot be read is to be known before anything is measured
    sizes = {n: getattr(options, n) for n in ("pairs", *SIZES)}
    best: dict[tuple[str, ...], tuple[float, str]] = {}
    for shape in options.shape:
        write_checkpoint(options.work / shape / "hf", SHAPES[shape])
        asked = Load(vocab=SHAPES[shape].vocab, **sizes)
        for weights in options.weights:
            bench = Bench(options=options, shape_name=shape, weights=weights, load=asked)
            for name in options.only:
                compare(bench, PEERS[name], best)
    show("\nlightwork over the best peer of each cell")
    for (cell, shape, weights), (ratio, name) in best.items():
        show(f"{cell:<14} {shape:<5} {weights:<5} {ratio:6.2f}x {name}")


if __name__ == "__main__":
    main()
