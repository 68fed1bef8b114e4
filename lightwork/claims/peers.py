"""lightwork beside the engines people use, as last measured: claims/peers.json.

`benchmarks/serve_peers.py --save` keeps each row as it is measured; `lightwork bench` prints them. Those of
`benchmarks/speculate_peers.py` have the same form, in a file of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lightwork.errors import SpecError

PEERS = Path(__file__).parent / "peers.json"
AGAIN = "python benchmarks/serve_peers.py --peers ENVIRONMENTS --save"
EVERY_CELL = "all"
"""The cell of a row that says why a peer was not measured at all, or not to the end."""

BARS: dict[str, float | None] = {
    "decode": 1.1,
    "prefill": 1.0,
    "batch": 1.2,
    "staggered": 1.2,
    "documents": 1.0,
    "http": 1.2,
    "http ttft p50": 1.2,
    "http ttft p99": 1.2,
    "http itl p50": 1.2,
    "http itl p99": 1.2,
    "http pieces": None,
    "memory": 1.0,
    "start cold": None,
    "start warm": None,
    **{
        f"{task} {what}": 1.0
        for task in ("copy", "ordinary")
        for what in ("plain", "lookup", "draft", "lookup steps", "draft steps", "best steps")
    },
}
"""The cells in their order, each with the ratio over the best peer that lightwork is to reach."""

FOLDERS = re.compile(r"(?<![\w.])/(?:[^/\s'\":]+/)+")
MAX_REASON = 200

Processor = tuple[str, str, int]
Key = tuple[Processor, float, str, str, tuple[int, str], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One cell of lightwork and one peer on one processor; where `absent` says why, without figures.

    lightwork, peer_figure: medians, in `unit`. ratio: the median over the pairs, with the least and the
    greatest, above one where lightwork is better. limit: what the memory allows, in `unit`. engine_threads:
    of each engine; threads: of the machine. versions: by engine, its own and its libraries'.
    """

    cell: str
    shape: str
    weights: str
    peer: str
    absent: str | None = None
    use: Sequence[str] = ()
    unit: str = ""
    lightwork: float = 0.0
    peer_figure: float = 0.0
    ratio: float = 0.0
    ratio_min: float = 0.0
    ratio_max: float = 0.0
    pairs: int = 0
    equal_tokens: float | None = None
    limit: float | None = None
    engine_threads: int
    versions: Mapping[str, Mapping[str, str]] | None = None
    date: str
    commit: str
    cpu: str
    instructions: Sequence[str]
    threads: int
    load: float

    @property
    def processor(self) -> Processor:
        """Name, instructions and threads used: in a virtual machine the name alone does not tell."""
        return self.cpu, " ".join(self.instructions), self.engine_threads

    @property
    def key(self) -> Key:
        """What is measured, by which a newer row takes the place of an older; rows are sorted by it."""
        return (self.processor, _size(self.shape), self.shape, self.weights, _place(self.cell), self.peer)

    @property
    def bar(self) -> float | None:
        return BARS.get(self.cell)

    @property
    def missed(self) -> bool:
        """Whether the ratio is below the bar of its cell."""
        return self.absent is None and self.bar is not None and self.ratio < self.bar

    def record(self) -> dict[str, Any]:
        """The row as plain values, without those it does not have."""
        default = {f.name: f.default for f in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != default[name]}


def load(path: Path = PEERS) -> list[Row]:
    """The rows on record; none where nothing was measured. Raises SpecError if the file is no such record."""
    if not path.is_file():
        return []
    try:
        return [Row(**record) for record in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise SpecError(
            f"{path.name} is not a record of peers: {error}",
            expected="a list of rows",
            fix=f"remove it, then {AGAIN}",
        ) from error


def keep(record: Mapping[str, Any], path: Path = PEERS) -> None:
    """Put one measured row on record.

    It takes the place of an older one of the same cell, shape, weights, peer and processor; a row with
    figures also of the one that said why the peer had none. Sorted, a line each, and never half written.
    """
    row = Row(**record)
    if row.absent is not None:
        row = Row(**{**record, "absent": _reason(row.absent)})
    gone = {row.key, _absence(row)} if row.absent is None else {row.key}
    rows = [*(r for r in load(path) if r.key not in gone), row]
    lines = (json.dumps(r.record(), ensure_ascii=False) for r in sorted(rows, key=lambda r: r.key))
    partial = path.with_suffix(".partial")
    partial.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    partial.replace(path)


def best_peers(rows: Iterable[Row]) -> list[Row]:
    """Of each cell, shape, weights and processor the row in which lightwork's ratio is the lowest."""
    lowest: dict[tuple[object, ...], Row] = {}
    for row in sorted((r for r in rows if r.absent is None), key=lambda r: (r.ratio, r.peer)):
        lowest.setdefault(row.key[:-1], row)
    return sorted(lowest.values(), key=lambda r: r.key)


def _absence(row: Row) -> Key:
    """The key of the row that says why this peer has no figures."""
    return (*row.key[:-2], _place(EVERY_CELL), row.peer)


def _reason(text: str) -> str:
    """In one line, without the folders of the machine it happened on."""
    return FOLDERS.sub("", " ".join(text.split()))[:MAX_REASON]


def _place(cell: str) -> tuple[int, str]:
    return (list(BARS).index(cell) if cell in BARS else len(BARS), cell)


def _size(shape: str) -> float:
    """Parameters that a shape's name tells, so that small models come first: 34M, 1.1B."""
    found = re.fullmatch(r"([\d.]+)([MB])", shape)
    return float(found[1]) * {"M": 1e6, "B": 1e9}[found[2]] if found else 0.0
