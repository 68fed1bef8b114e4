"""Rows go where they pay, drafts copy what they can, and a proposer that lies changes nothing."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from engines import UnitCost, expected, make_engine, request
from hypothesis import given
from hypothesis import strategies as st

from lightwork.decode.acceptance import Acceptance, chain_gain
from lightwork.decode.proposers import Draft, Effort, Text
from lightwork.decode.proposers.copy import Copy
from lightwork.decode.proposers.ngram import Ngram
from lightwork.decode.verifiers import Verdict
from lightwork.serve.budget import LEAST, PROBES, Budget
from lightwork.serve.engine import Engine
from lightwork.serve.row_times import RowTimes
from lightwork.serve.schedulers import Chunk, Step
from lightwork.serve.sequence import Request, begin
from lightwork.serve.simulate import run_load


def decodes(num: int, count: int = 1) -> Step:
    """A step of so many sequences, `count` tokens of each."""
    some = Request(prompt=(1,) * count, max_tokens=9)
    seqs = begin(replace(some, n=num), None, iter(range(num)), 0.0)
    return Step(chunks=[Chunk(seq, 0, count) for seq in seqs], budget=512)


def by_rows(*curve: tuple[float, float]) -> Budget:
    return Budget(RowTimes(curve).predict)


FLAT = ((1.0, 1.0), (64.0, 1.01))
"""Rows are almost free."""
STEEP = ((1.0, 1.0), (64.0, 64.0))
"""Every row takes as long as the first."""


def test_free_rows_are_given_as_long_as_guesses_hold() -> None:
    assert by_rows(*FLAT).offer(decodes(1), [chain_gain(0.9, 8)], 100).rows == [8]
    assert by_rows(*FLAT).offer(decodes(1), [chain_gain(0.9, 8)], 3).rows == [3]
    assert by_rows(*FLAT).offer(decodes(1), [chain_gain(0.05, 8)], 100).rows == [1]


def test_rows_that_cost_what_they_bring_are_not_given() -> None:
    offer = by_rows(*STEEP).offer(decodes(4), [chain_gain(0.9, 8)] * 4, 100)
    assert offer == ([0, 0, 0, 0], 0.0, 0.0)


def test_a_fuller_batch_and_a_longer_prompt_get_fewer_rows() -> None:
    rows = []
    for step in (decodes(1), decodes(4), decodes(16), decodes(32), decodes(1, 200)):
        offer = by_rows((1, 10), (64, 42)).offer(step, [chain_gain(0.8, 8)] * len(step.chunks), 400)
        rows.append(0 if offer.rows_s else sum(offer.rows) / len(step.chunks))
    assert rows[0] > rows[1] > rows[2] >= rows[3]
    assert rows[0] > 2
    assert rows[4] == 0


def test_who_is_guessed_better_gets_more_rows() -> None:
    few, many, none = (
        by_rows((1, 10), (64, 42)).offer(decodes(3), [chain_gain(0.5, 8), chain_gain(0.95, 8), []], 400).rows
    )
    assert many > few
    assert none == 0


@given(
    rates=st.lists(st.floats(0, 1), min_size=1, max_size=4),
    costs=st.lists(st.floats(0, 2), min_size=7, max_size=7),
    room=st.integers(1, 12),
)
def test_no_other_division_makes_more_tokens_per_second(
    rates: list[float], costs: list[float], room: int
) -> None:
    """Against all numbers of rows, each divided best, at the points where the cost is asked for."""
    gains = [[g for g in chain_gain(rate, 4) if g >= LEAST] for rate in rates]
    curve = [(float(i), 1.0 + sum(costs[: i // 10])) for i in range(0, 70, 10)]
    step, times = decodes(len(rates)), RowTimes(tuple(curve))
    offer = Budget(times.predict).offer(step, gains, room)
    best = sorted((g for of in gains for g in of), reverse=True)[:room]
    points = [0, 1, 2, 4, 8, len(best)]

    def speed(n: int, added: float) -> float:
        drafts = [Draft.chain([0] * n)] + [Draft()] * (len(rates) - 1)
        return (len(rates) + added) / times.predict(replace(step, drafts=drafts))

    taken = 0 if offer.rows_s else sum(offer.rows)
    added = 0.0 if offer.rows_s else sum(sum(of[:n]) for of, n in zip(gains, offer.rows, strict=True))
    assert sum(offer.rows) <= room
    most = max(speed(n, sum(best[:n])) for n in points if n <= len(best))
    if taken in points:
        assert speed(taken, added) >= most * (1 - 1e-9)


def test_probes_take_their_share_of_the_time_and_visit_everybody() -> None:
    budget = by_rows((1, 10), (64, 64))
    step, spent_s, asked = decodes(4), 0.0, [0, 0, 0, 0]
    for _ in range(2000):
        offer = budget.offer(step, [chain_gain(0.01, 4)] * 4, 100)
        asked = [a + n for a, n in zip(asked, offer.rows, strict=True)]
        spent_s += offer.rows_s
        if offer.rows_s:
            budget.spent(offer, answered=True)
    assert 0.9 * PROBES < spent_s / (2000 * 10 * 1.3) <= 1.1 * PROBES
    assert max(asked) - min(asked) <= 1
    assert min(asked) > 0


def test_statistics_forget() -> None:
    seen = Acceptance()
    for _ in range(50):
        seen.observe(4, 0)
    assert seen.rate(0.5) < 0.1
    for _ in range(20):
        seen.observe(4, 4)
    assert seen.rate(0.5) > 0.9


@dataclass
class Changing:
    """Guesses wrongly at first, and rightly from a moment on."""

    right_after: int
    k: int = 4
    asked: int = 0

    @property
    def effort(self) -> Effort:
        return Effort()

    def gain(self, text: Text, rate: float) -> Sequence[float]:
        return chain_gain(rate, self.k)

    def propose(self, texts: Sequence[Text], rows: Sequence[int]) -> list[Draft]:
        self.asked += 1
        drafts = []
        for text, n in zip(texts, rows, strict=True):
            at = len(text.tokens) - text.prompt_len
            req = request(text.tokens[: text.prompt_len], max_tokens=at + n)
            right = len(text.tokens) > self.right_after
            drafts.append(Draft.chain([(t + (not right)) % 50 for t in expected(req)[at:]]))
        return drafts

    def accept(self, texts: Sequence[Text], verdicts: Sequence[Verdict]) -> None: ...


def served(proposer: Any, requests: Sequence[Request], **parts: Any) -> tuple[Engine, list[Any]]:
    engine = make_engine(blocks=4000, proposer=proposer, **parts)
    seqs = run_load(engine, [0.0] * len(requests), requests)
    assert [seq.tokens[seq.prompt_len :] for seq in seqs] == [expected(r) for r in requests]
    assert engine.kv.free == engine.kv.total
    return engine, seqs


def test_drafts_come_back_when_guesses_hold_again() -> None:
    _, (seq,) = served(Changing(right_after=150), [request(max_tokens=600)])
    assert seq.accepted > 200


def test_a_useless_proposer_costs_next_to_nothing() -> None:
    def predict(step: Step) -> float:
        return sum(UnitCost().stages(step))

    requests = [request([i, 2], max_tokens=200) for i in range(16)]
    plain, _ = served(None, requests)
    useless, seqs = served(Changing(right_after=10**6), requests, predict=predict)
    assert sum(seq.drafted for seq in seqs) > 0
    assert plain.kernel.now() >= 0.98 * useless.kernel.now()


@dataclass
class Liar:
    """Does one thing wrong."""

    how: str
    k: Any = 3
    calls: int = 0

    @property
    def effort(self) -> Effort:
        return Effort()

    def gain(self, text: Text, rate: float) -> Any:
        wrong = {"nan gain": [float("nan")], "negative gain": [-1.0], "rising gain": [0.1, 0.9], "no gain": 3}
        return wrong.get(self.how, [0.9, 0.8, 0.7])

    def propose(self, texts: Sequence[Text], rows: Sequence[int]) -> Any:
        self.calls += 1
        if self.how == "raises":
            raise OSError("gone")
        one: Any = {
            "too many rows": Draft.chain([1] * 60),
            "lengths": Draft((1, 2), (-1,)),
            "negative": Draft.chain([-1]),
            "nan": Draft.chain([float("nan")]),  # type: ignore[list-item]
            "half": Draft.chain([1.5]),  # type: ignore[list-item]
            "outside": Draft.chain([50]),
            "cycle": Draft((1,), (0,)),
            "no draft": (1, 2),
            "text": Draft(("a",), (-1,)),  # type: ignore[arg-type]
        }.get(self.how, Draft.chain([7]))
        return [one] * (0 if self.how == "too few" else len(texts))

    def accept(self, texts: Sequence[Text], verdicts: Sequence[Verdict]) -> None:
        if self.how == "raises late":
            raise RuntimeError("accepts nothing")

    def forget(self, seq_id: int) -> None: ...

    def close(self) -> None: ...


LIES = [
    *(
        "nan gain",
        "negative gain",
        "rising gain",
        "no gain",
        "raises",
        "too many rows",
        "lengths",
        "negative",
    ),
    *("nan", "half", "outside", "cycle", "no draft", "text", "too few", "raises late"),
]


@pytest.mark.parametrize("how", LIES)
def test_a_proposer_that_lies_is_named_once_and_changes_no_text(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    liar = Liar(how)
    with caplog.at_level(logging.WARNING):
        served(liar, [request([i, 3], max_tokens=30) for i in range(4)])
    (record,) = caplog.records
    assert "Liar" in record.getMessage()
    assert liar.calls <= 1


def test_wrong_tokens_change_no_text_and_are_no_lie(caplog: pytest.LogCaptureFixture) -> None:
    _, seqs = served(Liar("nothing"), [request([i, 3], max_tokens=30) for i in range(4)])
    assert sum(seq.drafted for seq in seqs) > 0
    assert not caplog.records


def steps_of(proposer: Any, prompt: Sequence[int], max_tokens: int) -> int:
    return served(proposer, [request(prompt, max_tokens=max_tokens)])[0].steps


SOURCES = [[3] * 500, [9], [], [*range(50)] * 198, [1, 2, 1, 2, 1, 3], [7, 7, 7, 8, 7, 7, 7]]


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: f"{len(s)} tokens")
@pytest.mark.parametrize("k", [1, 4, 64])
@pytest.mark.parametrize("proposer", [Copy, Ngram], ids=lambda p: p.__name__)
def test_no_source_takes_more_steps_than_greedy(source: list[int], k: int, proposer: Any) -> None:
    prompt = [*source, 1]
    cut = {"stop": -1} if proposer is Copy else {}
    assert steps_of(proposer(k=k, **cut), prompt, 60) <= steps_of(None, prompt, 60)


def test_an_output_that_is_its_source_takes_few_steps() -> None:
    """The answer's tokens depend on the sum of the prompt only, so that it can stand in the prompt."""
    source = [(7 * 50 + p % 5) % 50 for p in range(101, 161)]
    prompt = [*source, 0] + [0] * 40
    total = sum(prompt) * 7
    shift = next(s for s in range(50) if ((total + 7 * s) - 0) % 50 == 0)
    prompt[60] = shift
    answer = expected(request(prompt, max_tokens=60))
    assert answer == source
    copied = steps_of(Copy(stop=60), prompt, 60)
    assert copied <= 60 / 5 + 2


@pytest.mark.parametrize("proposer", [Copy(k=8), Copy(start=1, stop=-1), Ngram(k=8)], ids=repr)
def test_drafts_keep_the_text_in_batches_with_stops_and_little_memory(proposer: Any) -> None:
    requests = [request([(i * 7) % 50, *range(i % 9)], max_tokens=5 + 3 * i) for i in range(12)]
    engine = make_engine(blocks=40, proposer=proposer)
    seqs = run_load(engine, [0.003 * i for i in range(12)], requests)
    assert [seq.tokens[seq.prompt_len :] for seq in seqs] == [expected(r) for r in requests]
