"""Forming a draft is a part of its price: who takes longer than it gains is not asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from engines import UnitCost, expected, make_engine, request

from lightwork.cluster import CostModel, parse_place
from lightwork.decode.acceptance import chain_gain
from lightwork.decode.proposers import Draft, Effort, Pass, Text
from lightwork.decode.proposers.ngram import Ngram
from lightwork.decode.verifiers import Verdict
from lightwork.models import read_shape
from lightwork.runtime.kernel import Kernel
from lightwork.serve.budget import PROBES, REST, Budget
from lightwork.serve.cost import ClusterCost
from lightwork.serve.engine import Engine
from lightwork.serve.form_times import Depth, FormTimes
from lightwork.serve.forming import LOOKUP_S, Priced
from lightwork.serve.plan import Plan
from lightwork.serve.row_times import RowTimes
from lightwork.serve.schedulers import Chunk, Step
from lightwork.serve.sequence import Request, begin
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulate import run_load
from lightwork.serve.simulated import open_simulated

FLAT = RowTimes(((1.0, 1e-3), (64.0, 1.1e-3)))
"""The target: rows are almost free."""


@dataclass(frozen=True, slots=True)
class Takes:
    """So many seconds for each row of the longest draft, for each text, and for the first draft of one."""

    row_s: float = 0.0
    text_s: float = 0.0
    beside: bool = False
    new_s: float = 0.0

    def seconds(self, texts: int, rows: int, context: float) -> float:
        return rows * self.row_s + texts * self.text_s

    def opening_s(self, context: float) -> float:
        return self.new_s


def decodes(num: int) -> Step:
    seqs = begin(Request(prompt=(1,), max_tokens=9, n=num), None, iter(range(num)), 0.0)
    return Step(chunks=[Chunk(seq, 0, 1) for seq in seqs], budget=512)


def rows_of(
    forming: Takes | None, num: int = 1, rate: float = 0.8, answers: Sequence[float] = ()
) -> list[int]:
    """Of each text; none where it is asked only to learn."""
    budget = Budget(FLAT.predict, forming)
    offer = budget.offer(decodes(num), [chain_gain(rate, 6)] * num, 500, answers)
    return [0] * num if offer.asked_s + offer.rows_s else offer.rows


def test_rows_are_given_as_long_as_forming_them_takes_less_than_they_gain() -> None:
    assert rows_of(None) == rows_of(Takes()) == [6]
    (some,) = rows_of(Takes(row_s=0.35e-3))
    assert 1 <= some < 6
    assert rows_of(Takes(row_s=0.9e-3)) == [0]
    assert rows_of(Takes(text_s=1e-4)) == [6]
    assert rows_of(Takes(text_s=5e-3)) == [0]


def test_a_draft_models_pass_is_shared_by_a_batch_and_a_lookup_is_not() -> None:
    assert min(rows_of(Takes(row_s=0.2e-3), 8)) >= 3
    assert rows_of(Takes(text_s=0.9e-3)) == [6]
    assert rows_of(Takes(text_s=0.9e-3), 8) == [0] * 8


def test_what_is_written_beside_the_target_costs_what_it_takes_longer() -> None:
    assert rows_of(Takes(text_s=0.99e-3, beside=True)) == rows_of(None)
    assert rows_of(Takes(text_s=5e-3, beside=True)) == [0]
    (beside,) = rows_of(Takes(row_s=0.25e-3, beside=True))
    (before,) = rows_of(Takes(row_s=0.25e-3))
    assert beside == 4 > before


def test_who_seldom_has_a_draft_is_not_worth_asking() -> None:
    assert rows_of(Takes(text_s=0.3e-3), answers=[1.0]) == [6]
    assert rows_of(Takes(text_s=0.3e-3), answers=[0.05]) == [0]
    assert rows_of(Takes(), answers=[0.05]) == [6]


@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize("beside", [False, True])
def test_probes_with_what_they_take_to_form_have_their_share_of_the_time(
    answered: bool, beside: bool
) -> None:
    budget = Budget(FLAT.predict, Takes(text_s=2e-3, beside=beside))
    step, spent_s, asked = decodes(3), 0.0, []
    for _ in range(6000):
        offer = budget.offer(step, [chain_gain(0.01, 4)] * 3, 100)
        if any(offer.rows):
            asked.append(offer.rows.index(1))
            spent_s += offer.asked_s + offer.rows_s * answered
            budget.spent(offer, answered=answered)
    assert 0.8 * PROBES < spent_s / (6000 * 1e-3) <= 1.1 * PROBES
    assert {asked.count(i) for i in range(3)} <= {*range(len(asked) // 3 - 2, len(asked) // 3 + 3)}
    if beside:  # what was written in one step is there in the next
        assert asked[::2][:4] == asked[1::2][:4]


@dataclass(slots=True)
class Guesses:
    """Every guess right, or none; counts how often it is asked."""

    right: bool = True
    k: int = 4
    effort: Effort = field(default_factory=Effort)
    asked: int = 0

    def gain(self, text: Text, rate: float) -> Sequence[float]:
        return chain_gain(rate, self.k)

    def propose(self, texts: Sequence[Text], rows: Sequence[int]) -> list[Draft]:
        self.asked += 1
        drafts = []
        for text, num in zip(texts, rows, strict=True):
            at = len(text.tokens) - text.prompt_len
            right = expected(request(text.tokens[: text.prompt_len], max_tokens=at + num))[at:]
            drafts.append(Draft.chain([(token + (not self.right)) % 50 for token in right]))
        return drafts

    def accept(self, texts: Sequence[Text], verdicts: Sequence[Verdict]) -> None: ...

    def forget(self, seq_id: int) -> None: ...

    def close(self) -> None: ...


def predict(step: Step) -> float:
    """Rows of drafts are nearly free."""
    return 1e-3 * sum(chunk.count for chunk in step.chunks) + 1e-6 * sum(map(len, step.drafts))


class NearlyFree(UnitCost):
    def stages(self, step: Step) -> Sequence[float]:
        spared_s = 0.999e-3 * sum(map(len, step.drafts))
        return [seconds - spared_s for seconds in super().stages(step)]


def served(drafter: Guesses | None, forming: Takes, num: int = 1) -> tuple[Engine, list[Seq]]:
    engine = make_engine(blocks=400, proposer=drafter, predict=predict, forming=forming)
    engine.runner.cost = NearlyFree()  # type: ignore[attr-defined]
    requests = [request([i, 2], max_tokens=300) for i in range(num)]
    seqs = run_load(engine, [0.0] * num, requests)
    assert [seq.tokens[seq.prompt_len :] for seq in seqs] == [expected(each) for each in requests]
    return engine, seqs


def test_cheap_guesses_are_asked_for_and_dear_ones_only_to_learn() -> None:
    plain, _ = served(None, Takes())
    cheap, (seq,) = served(Guesses(), Takes(text_s=2e-4))
    assert cheap.steps < 100
    assert seq.accepted > 200
    dear, _ = served(drafter := Guesses(), Takes(text_s=20e-3))
    assert drafter.asked <= 1 + PROBES * 300e-3 / 20e-3
    assert plain.kernel.now() >= 0.98 * dear.kernel.now()
    assert cheap.kernel.now() < 0.5 * plain.kernel.now()


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("text_s", [1e-5, 4e-4, 3e-3])
def test_a_useless_proposer_costs_next_to_nothing_whatever_it_takes(text_s: float, beside: bool) -> None:
    plain, _ = served(None, Takes(), 16)
    useless, _ = served(Guesses(right=False), Takes(text_s=text_s, beside=beside), 16)
    assert plain.kernel.now() >= 0.98 * useless.kernel.now()


def test_a_text_is_opened_if_that_pays_for_what_is_to_come() -> None:
    cheap, (seq,) = served(few := Guesses(), Takes(text_s=1e-4, new_s=10e-3))
    assert few.asked > 50
    forming_s = 10e-3 + few.asked * 1e-4
    assert cheap.kernel.now() == pytest.approx((1 + cheap.steps) * 1e-3 + seq.drafted * 1e-6 + forming_s)
    dear, _ = served(none := Guesses(), Takes(text_s=1e-4, new_s=1.0))
    assert none.asked == 0
    assert dear.kernel.now() == pytest.approx(0.301, abs=1e-3)


def test_how_long_texts_get_is_learnt() -> None:
    budget = Budget(FLAT.predict, Takes())
    given = {"gains": [chain_gain(0.8, 6)], "room": 100, "answers": [1.0], "openings_s": [10e-3]}
    assert budget.offer(decodes(1), **given).rows == [6]
    for _ in range(30):
        budget.ended(8)
    assert budget.offer(decodes(1), **given).rows == [0]


def test_simulated_time_passes_for_forming_before_a_step_or_beside_it() -> None:
    seconds = {}
    for how in (Takes(), Takes(text_s=5e-4), Takes(text_s=5e-4, beside=True)):
        engine, (seq,) = served(drafter := Guesses(), how)
        assert seq.accepted == seq.drafted
        seconds[how.beside, how.text_s] = engine.kernel.now(), drafter.asked
    (free_s, asked), (before_s, before), (beside_s, hidden) = seconds.values()
    assert asked == before == hidden
    assert before_s == pytest.approx(free_s + asked * 5e-4)
    assert beside_s == pytest.approx(free_s)


def test_a_draft_models_passes_and_the_hosts_time_are_priced() -> None:
    place = CostModel(parse_place("sim:a100"))
    costs = {name: ClusterCost(read_shape(name), place, dtype="bfloat16") for name in ("shape:llama-2-7b",)}
    small = costs["shape:llama-2-7b"]

    def seconds(effort: Effort, texts: int, rows: int) -> float:
        return Priced(effort, costs.__getitem__).seconds(texts, rows, 100)

    chain = Effort(passes=(Pass("shape:llama-2-7b"),))
    assert seconds(Effort(), 3, 5) == pytest.approx(3 * LOOKUP_S)
    assert seconds(chain, 2, 5) == pytest.approx(5 * small.pass_s([(100, 1)] * 2) + 2 * LOOKUP_S)
    assert seconds(chain, 2, 5) < 1.2 * seconds(chain, 1, 5)
    ahead = Effort(passes=chain.passes, beside=True, least=4)
    assert seconds(ahead, 1, 1) == seconds(chain, 1, 4)
    block = Effort(passes=(Pass("shape:llama-2-7b", block=True),))
    assert seconds(block, 1, 5) == pytest.approx(small.pass_s([(0, 105)]) + LOOKUP_S)
    step = Step(chunks=[chunk._replace(start=100) for chunk in decodes(2).chunks])
    step.known = [101, 101]
    assert small.pass_s([(100, 1)] * 2) == pytest.approx(sum(small.stages(step)))


def test_a_simulated_plan_prices_its_lookups() -> None:
    plan = Plan(model="shape:llama-2-7b", on="sim:a100", use=[Ngram(k=4)])
    engine, _ = open_simulated(plan, Kernel())
    assert isinstance(engine, Engine)
    assert engine.forming is not None
    assert engine.forming.seconds(2, 4, 100) == pytest.approx(2 * LOOKUP_S)


def test_a_table_is_linear_between_and_beyond_what_was_measured() -> None:
    one = Depth(1, ((1, 1.0), (4, 2.5)), token_s=0.01)
    four = Depth(4, ((1, 4.0), (4, 7.0)), token_s=0.01)
    times = FormTimes(one, four, beside=False)
    assert [times.seconds(texts, 1, 0) for texts in (1, 2, 4, 8)] == [1.0, 1.5, 2.5, 5.0]
    assert [times.seconds(1, rows, 0) for rows in (1, 2, 4)] == [1.0, 2.0, 4.0]
    assert times.seconds(2, 1, 132) == pytest.approx(1.5 + 2 * 100 * 0.01)
    assert FormTimes(one, one, beside=True).seconds(1, 3, 0) == 1.0


def test_what_does_not_pay_is_not_asked_again_at_once_but_beside_fewer_tokens() -> None:
    budget = Budget(FLAT.predict, Takes(text_s=5e-3))
    assert not budget.rests(decodes(2))
    budget.offer(decodes(2), [chain_gain(0.5, 4)] * 2, 100)
    assert not budget.rests(decodes(1))
    assert not budget.rests(decodes(3))
    assert [budget.rests(decodes(2)) for _ in range(REST + 1)] == [True] * REST + [False]
    paying = Budget(FLAT.predict, Takes())
    assert any(paying.offer(decodes(2), [chain_gain(0.5, 4)] * 2, 100).rows)
    assert not paying.rests(decodes(2))
