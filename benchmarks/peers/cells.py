"""The cells of the comparison: what is asked of both engines, and the figures that come back.

A cell is a function from the two engines to a list of figures per repeat. Every pair is interleaved A B, then
B A, so that a drift of the machine favours nobody, and both get the same requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TypeVar

import numpy as np

from peers.process import Worker
from peers.shapes import FIRST_WORD
from peers.streams import Server, Streams

DOCUMENTS, QUESTIONS = 24, 6
DOCUMENTS_KV_TOKENS = DOCUMENTS * 384 // 4
"""A cache holds a quarter of the documents."""

T = TypeVar("T")
Requests = tuple[list[list[int]], list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Sizes of the cells, tokens and counts. The defaults are those of the published figures."""

    vocab: int
    pairs: int = 9
    prompt: int = 64
    output: int = 64
    prefill: int = 2048
    requests: int = 32
    streams: int = 16
    seed: int = 0

    def rng(self, cell: int, repeat: int = 0) -> np.random.Generator:
        return np.random.default_rng((self.seed, cell, repeat))

    def ids(self, rng: np.random.Generator, length: int) -> list[int]:
        return [int(t) for t in rng.integers(FIRST_WORD, self.vocab, length)]

    def mixed(self) -> Requests:
        """Prompts of 32 to 512 tokens and outputs of 16 to 96, both uniform in the logarithm."""
        rng = self.rng(2)
        prompts = np.exp(rng.uniform(np.log(32), np.log(512), self.requests)).astype(int)
        outputs = np.exp(rng.uniform(np.log(16), np.log(96), self.requests)).astype(int)
        return [self.ids(rng, int(n)) for n in prompts], [int(n) for n in outputs]

    def questions(self, repeat: int) -> Requests:
        """Six questions of 16 to 32 tokens on each of 24 documents of 384, shuffled; 16 to 32 tokens of
        answer.

        New ones for each repeat: nothing is known of them.
        """
        rng = self.rng(4, repeat)
        documents = [self.ids(rng, 384) for _ in range(DOCUMENTS)]
        prompts = [d + self.ids(rng, int(rng.integers(16, 33))) for d in documents for _ in range(QUESTIONS)]
        order = rng.permutation(len(prompts))
        return [prompts[i] for i in order], [int(n) for n in rng.integers(16, 33, len(prompts))]

    def texts(self, repeat: int) -> tuple[list[str], list[int]]:
        """Texts of 64 to 256 letters, each letter a token, new ones for each repeat: no prefix is known."""
        rng = self.rng(3, repeat)
        sizes = rng.integers(64, 257, self.streams)
        texts = ["".join(chr(97 + c) for c in rng.integers(0, 26, int(n))) for n in sizes]
        return texts, [int(n) for n in rng.integers(32, 65, self.streams)]

    def kv_tokens(self) -> int:
        """Tokens that the caches must hold: the largest of the cells, and a block of 32 more per request."""
        prompts, outputs = self.mixed()
        most = max(
            sum(map(len, prompts)) + sum(outputs), self.streams * (256 + 64), self.prefill + self.output
        )
        return most + 32 * max(self.requests, self.streams)


@dataclass(slots=True, kw_only=True)
class Row:
    """One figure of both engines over all pairs. higher: more is better. agree: share of equal tokens."""

    name: str
    unit: str
    higher: bool
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    agree: float | None = None

    def ratios(self) -> list[float]:
        """lightwork's advantage in each pair: above one where lightwork is better."""
        pairs = zip(self.ours, self.theirs, strict=True)
        return [a / b if self.higher else b / a for a, b in pairs]

    def summary(self) -> tuple[float, float, float]:
        """Median, least and greatest ratio."""
        ratios = self.ratios()
        return median(ratios), min(ratios), max(ratios)


def interleaved(ours: Callable[[int], T], theirs: Callable[[int], T], pairs: int) -> tuple[list[T], list[T]]:
    """Both functions of the pair's number, called A B, B A, A B, ..."""
    a: list[T] = []
    b: list[T] = []
    for i in range(pairs):
        for call, results in ((ours, a), (theirs, b)) if i % 2 == 0 else ((theirs, b), (ours, a)):
            results.append(call(i))
    return a, b


def agreement(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> float:
    """Share of tokens that are equal, position by position."""
    equal = [x == y for a, b in zip(ours, theirs, strict=True) for x, y in zip(a, b, strict=True)]
    return sum(equal) / len(equal)


def decode(ours: Worker, theirs: Worker, load: Load) -> list[Row]:
    """Tokens per second of one request after its first: the time of n + 1 tokens less the time of one.

    The time of one is the lesser of a run before and one after: a slow one would flatter the engine.
    """
    prompt = load.ids(load.rng(0), load.prompt)

    def run(worker: Worker) -> tuple[float, list[list[int]]]:
        before_s, _ = worker.generate([prompt], [1])
        all_s, tokens = worker.generate([prompt], [load.output + 1])
        after_s, _ = worker.generate([prompt], [1])
        return load.output / (all_s - min(before_s, after_s)), tokens

    return [_compared("decode", "tokens/s", run, ours, theirs, load.pairs)]


def prefill(ours: Worker, theirs: Worker, load: Load) -> list[Row]:
    """Prompt tokens per second up to the first token."""
    prompt = load.ids(load.rng(1), load.prefill)

    def run(worker: Worker) -> tuple[float, list[list[int]]]:
        seconds, tokens = worker.generate([prompt], [1])
        return load.prefill / seconds, tokens

    return [_compared("prefill", "tokens/s", run, ours, theirs, load.pairs)]


def batch(ours: Worker, theirs: Worker, load: Load) -> list[Row]:
    """Output tokens per second of all requests, given at once."""
    prompts, lengths = load.mixed()

    def run(worker: Worker) -> tuple[float, list[list[int]]]:
        seconds, tokens = worker.generate(prompts, lengths)
        return sum(lengths) / seconds, tokens

    return [_compared("batch", "tokens/s", run, ours, theirs, load.pairs)]


def documents(ours: Worker, theirs: Worker, load: Load) -> list[Row]:
    """Requests per second of many questions on a few documents, known at once."""
    row = Row(name="documents", unit="requests/s", higher=True)
    for worker in (ours, theirs):
        worker.generate(*load.questions(load.pairs))

    def run(worker: Worker, i: int) -> tuple[float, list[list[int]]]:
        prompts, lengths = load.questions(i)
        seconds, tokens = worker.generate(prompts, lengths)
        return len(prompts) / seconds, tokens

    a, b = interleaved(lambda i: run(ours, i), lambda i: run(theirs, i), load.pairs)
    row.ours, row.theirs = [rate for rate, _ in a], [rate for rate, _ in b]
    row.agree = agreement(a[0][1], b[0][1])
    return [row]


def staggered(ours: Worker, theirs: Worker, load: Load) -> list[Row]:
    """Mean seconds from a request's coming to its end: 8 tokens in, 48 out, eight of them coming in the time
    that the peer takes for one."""
    rng = load.rng(5)
    prompts, lengths = [load.ids(rng, 8) for _ in range(load.requests)], [48] * load.requests
    alone_s = min(theirs.generate(prompts[:1], lengths[:1])[0] for _ in range(3))
    at_s = [i * alone_s / 8 for i in range(load.requests)]

    def run(worker: Worker) -> float:
        ended_s = worker.offer(prompts, lengths, at_s)
        return sum(ended_s) / len(at_s) - sum(at_s) / len(at_s)

    run(ours)
    run(theirs)
    a, b = interleaved(lambda i: run(ours), lambda i: run(theirs), load.pairs)
    return [Row(name="staggered", unit="s", higher=False, ours=a, theirs=b)]


def memory(ours: Worker, theirs: Worker, load: Load) -> list[Row]:
    """Resident memory after what was asked before, shared pages in proportion. Read once, no spread."""
    a, b = ours.pss_bytes() / 1e6, theirs.pss_bytes() / 1e6
    return [Row(name="memory", unit="MB", higher=False, ours=[a], theirs=[b])]


def streams(ours: Server, theirs: Server, load: Load) -> list[Row]:
    """Concurrent HTTP streams, each server's own. Gaps compare only where both send a piece per token."""
    for server in (ours, theirs):
        server.run(*load.texts(load.pairs))
    a, b = interleaved(lambda i: ours.run(*load.texts(i)), lambda i: theirs.run(*load.texts(i)), load.pairs)
    return [
        _of_streams("http", "tokens/s", True, a, b, lambda s: s.tokens_per_s),
        _of_streams("http ttft p50", "ms", False, a, b, lambda s: 1e3 * s.ttft_p50_s),
        _of_streams("http ttft p99", "ms", False, a, b, lambda s: 1e3 * s.ttft_p99_s),
        _of_streams("http itl p50", "ms", False, a, b, lambda s: 1e3 * s.itl_p50_s),
        _of_streams("http itl p99", "ms", False, a, b, lambda s: 1e3 * s.itl_p99_s),
        _of_streams("http pieces", "per token", True, a, b, lambda s: s.pieces),
    ]


def starts(
    ours: Callable[[], Worker],
    theirs: Callable[[], Worker],
    evict: Callable[[], None],
    load: Load,
) -> list[Row]:
    """Seconds from nothing to the first token, weights only on disk (cold) or in the page cache (warm)."""
    prompt = load.ids(load.rng(0), load.prompt)

    def run(start: Callable[[], Worker], cold: bool) -> float:
        if cold:
            evict()
        begin = time.perf_counter()
        with start() as worker:
            worker.generate([prompt], [1])
            return time.perf_counter() - begin

    rows = []
    run(ours, False)
    run(theirs, False)
    for name, cold in (("start cold", True), ("start warm", False)):
        a, b = interleaved(lambda i, c=cold: run(ours, c), lambda i, c=cold: run(theirs, c), load.pairs)
        rows.append(Row(name=name, unit="s", higher=False, ours=a, theirs=b))
    return rows


def _compared(
    name: str,
    unit: str,
    run: Callable[[Worker], tuple[float, list[list[int]]]],
    ours: Worker,
    theirs: Worker,
    pairs: int,
) -> Row:
    """One warm-up each, then the pairs; tokens compared in the first."""
    run(ours)
    run(theirs)
    a, b = interleaved(lambda i: run(ours), lambda i: run(theirs), pairs)
    same = agreement(a[0][1], b[0][1])
    return Row(
        name=name, unit=unit, higher=True, ours=[r for r, _ in a], theirs=[r for r, _ in b], agree=same
    )


def _of_streams(
    name: str,
    unit: str,
    higher: bool,
    ours: Sequence[Streams],
    theirs: Sequence[Streams],
    value: Callable[[Streams], float],
) -> Row:
    return Row(
        name=name, unit=unit, higher=higher, ours=[value(s) for s in ours], theirs=[value(s) for s in theirs]
    )
