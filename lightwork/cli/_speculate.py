"""The table of proposers beside plain decoding, and what other programs came to on the same texts."""

from __future__ import annotations

from collections.abc import Sequence

from lightwork.claims import speculate
from lightwork.claims.peers import load
from lightwork.claims.speculate import (
    BAR,
    CHATS,
    COPIES,
    KEPT,
    NEW,
    PLAIN,
    PROPOSERS,
    RECORD,
    TARGET,
    TASKS,
    Beside,
)
from lightwork.cli._output import show_json, show_table
from lightwork.cli._peers import show_peers

COLUMNS = ("proposer", "tokens/step", "rows", "served", "rows", "tokens/s", "over plain", "range")
AGAIN = "python benchmarks/speculate_peers.py --peers ENVIRONMENTS --save"


def show_speculation(uses: Sequence[str], rounds: int, as_json: bool) -> None:
    """Measure the proposers and print them, then the record of the peers. uses: none for all of ours."""
    found, record = speculate.compare(uses or PROPOSERS, rounds), load(RECORD)
    if as_json:
        show_json({"rounds": rounds, "ours": found, "peers": [row.record() for row in record]})
        return
    print(f"{TARGET} on cpu, 1 thread, greedy, one request at a time   measured   n={rounds}   outputs equal")
    print("tokens and drafted rows per step: with all rows that a proposer can use; served: those that pay\n")
    for task, words in TASKS.items():
        print(f"{task}: {words} ({CHATS} chats a round)")
        show_table(COLUMNS, [_cells(row) for row in found if row.task == task])
        print()
    print(f"{_verdict(found)}\n")
    print("the same chats, each side guessing as many tokens at a time, against the peer that does best")
    show_peers(record, as_json=False, again=AGAIN)


def _verdict(found: Sequence[Beside]) -> str:
    """Whether the best proposer is fast enough where there is much to copy, and the slowest elsewhere."""
    best, slowest = (
        choose((row for row in found if row.task == task and row.use != PLAIN), key=_over_plain)
        for choose, task in ((max, COPIES), (min, NEW))
    )
    return "\n".join(
        f"{which} on {row.task}: {row.use}, {_over_plain(row):.2f}x plain decoding, bar {bar}"
        + " MISSED" * (_over_plain(row) < bar)
        for which, row, bar in (("best", best, BAR), ("slowest", slowest, KEPT))
    )


def _over_plain(row: Beside) -> float:
    return row.over_plain[0]


def _cells(row: Beside) -> tuple[str, ...]:
    middle, low, high = row.over_plain
    counts = (row.tokens_per_step, row.rows_per_step, row.served_tokens_per_step, row.served_rows_per_step)
    ratios = (f"{middle:.2f}x", f"[{low:.2f}, {high:.2f}]")
    return (row.use, *(f"{count:.2f}" for count in counts), f"{row.tokens_per_s:.0f}", *ratios)
