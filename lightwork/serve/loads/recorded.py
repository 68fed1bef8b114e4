"""A recorded trace: arrivals and lengths read from a CSV file.

Paper:  "Splitwise: Efficient Generative LLM Inference Using Phase Splitting", 2024 (whose published files
        have the second header below; the third is that of the simulator Vidur's)
Idea:   one line is one request; the first comes at 0 s
Shapes: file with columns at_s, prompt, output, or one of the other headers below -> its arrivals
Cost:   O(lines)
Claims: -
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from math import isfinite
from pathlib import Path

import numpy as np

from lightwork.errors import RangeError, SpecError
from lightwork.serve.loads import Arrival

OURS = ("at_s", "prompt", "output")
AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
VIDUR = ("arrived_at", "num_prefill_tokens", "num_decode_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """path: of the file. speed: how many times faster than recorded its requests come."""

    path: str = "trace.csv"
    speed: float = 1.0

    def __post_init__(self) -> None:
        if self.speed <= 0:
            raise RangeError(f"speed is {self.speed}", expected="above 0", fix="speed=1.0")

    def arrivals(self, rng: np.random.Generator) -> list[Arrival]:
        """Raises SpecError for a file that is not there or a line that cannot be read, with its number."""
        try:
            with Path(self.path).open(newline="", encoding="utf-8-sig") as file:
                rows = sorted(self._rows(csv.DictReader(file)))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise SpecError(
                f"the trace {self.path} cannot be read: {error}", expected="a CSV file", fix="check its path"
            ) from error
        if not rows:
            raise SpecError(f"the trace {self.path} has no requests", expected="at least one line")
        first_s = rows[0][0]
        return [Arrival((at_s - first_s) / self.speed, p, o) for at_s, p, o in rows]

    def _rows(self, reader: csv.DictReader[str]) -> Iterator[tuple[float, int, int]]:
        header = reader.fieldnames or ()
        columns = next((c for c in (OURS, AZURE, VIDUR) if set(c) <= set(header)), None)
        if columns is None:
            raise SpecError(
                f"the trace {self.path} has columns {', '.join(header)}",
                expected=" or ".join(", ".join(columns) for columns in (OURS, AZURE, VIDUR)),
                fix="add a first line with these names",
            )
        for row in reader:
            when, prompt, output = (row[c] for c in columns)
            try:
                at_s = _seconds(when) if columns is AZURE else float(when)
                lengths = int(prompt), int(output)
            except (TypeError, ValueError):
                at_s, lengths = float("nan"), (0, 0)
            if not isfinite(at_s) or min(lengths) < 1:
                raise SpecError(
                    f"line {reader.line_num} of the trace {self.path} is {when}, {prompt}, {output}",
                    expected="a time and two token counts of at least 1",
                    fix="correct or remove the line",
                )
            yield at_s, *lengths


def _seconds(timestamp: str) -> float:
    """Seconds of '2023-11-16 18:17:03.9799600': seven digits of a second, of which six are kept."""
    whole, _, part = timestamp.strip().partition(".")
    return datetime.fromisoformat(whole).timestamp() + float(f"0.{part or 0}")
