"""What a drafter takes is measured once before serving, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("numba")

from lightwork.decode.proposers import Proposer, Target
from lightwork.decode.proposers.cascade import Cascade
from lightwork.decode.proposers.copy import Copy
from lightwork.decode.proposers.draft_model import DraftModel
from lightwork.decode.proposers.ngram import Ngram
from lightwork.decode.proposers.pearl import Pearl
from lightwork.decode.proposers.ppd import PPD
from lightwork.decode.sampling import Sampling
from lightwork.models import read_shape
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.serve.form_times import Depth, FormTimes, measure_forming
from lightwork.serve.opening import open_one
from lightwork.serve.plan import Plan
from lightwork.serve.sequence import Request
from lightwork.serve.simulate import run_load

MODEL = "tiny:llama"


@pytest.fixture
def target() -> Iterator[Target]:
    beside = ThreadPoolExecutor(1)
    yield Target(
        model=MODEL, on="cpu", max_seqs=4, max_len=256, beside=beside, put_probes=lambda embeddings: None
    )
    beside.shutdown()


@pytest.mark.parametrize(
    "proposer",
    [Ngram(), Copy(k=4), DraftModel(k=2), Cascade(), Pearl(inner=DraftModel(k=2)), PPD(k=8)],
    ids=repr,
)
def test_every_proposer_has_its_table(proposer: Proposer, target: Target) -> None:
    drafter = proposer.begin(target)
    times = measure_forming(drafter, read_shape(MODEL).vocab_size, max_seqs=4, max_len=256)
    drafter.close()
    assert [num for num, _ in times.least.curve] == [num for num, _ in times.most.curve] == [1, 4]
    assert (times.least.rows, times.most.rows) == (1, drafter.k)
    seconds = [
        times.seconds(*how) for how in ((1, 1, 9), (1, drafter.k, 9), (3, drafter.k, 9), (3, drafter.k, 200))
    ]
    assert 0 < seconds[0] <= seconds[1] <= seconds[2] <= seconds[3]
    assert times.beside == isinstance(proposer, Pearl)


def test_texts_that_were_made_up_hold_no_blocks(target: Target) -> None:
    drafter = DraftModel(k=2).begin(target)
    measure_forming(drafter, read_shape(MODEL).vocab_size, max_seqs=4, max_len=256)
    drafter.check()
    assert drafter.usage == 0.0
    drafter.close()


def test_an_engine_that_has_hardly_room_is_measured_as_well(target: Target) -> None:
    times = measure_forming(Ngram(k=8), 50, max_seqs=1, max_len=4)
    assert [num for num, _ in times.most.curve] == [1]


def served(forming_s: float, *, beside: bool = False) -> tuple[int, list[list[int]]]:
    """Rows of drafts, and texts, of an engine that is told what steps and drafts take."""
    plan = Plan(model=MODEL, use=[Ngram(k=4)], threads=1, max_len=200)
    one = Depth(1, ((1, forming_s),), token_s=0.0)
    table = FormTimes(one, one, beside=beside)
    engine, model, _ = open_one(
        plan, Kernel(WallClock()), predict=lambda step: 1e-3, forming=lambda drafter: table
    )
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(0, 256, 12).tolist()) * 3 for _ in range(3)]
    load = [Request(prompt=prompt, max_tokens=40, sampling=Sampling(temperature=0.0)) for prompt in prompts]
    seqs = run_load(engine, [0.0] * len(load), load)
    engine.close()
    model.close()
    return sum(seq.drafted for seq in seqs), [seq.tokens for seq in seqs]


def test_a_real_engine_asks_by_the_table_that_it_is_given() -> None:
    cheap, texts = served(1e-5)
    dear, same = served(1.0)
    assert cheap > 20
    assert dear == 0
    assert texts == same


def test_what_is_measured_is_told() -> None:
    engine, model, settings = open_one(Plan(model=MODEL, use=[Ngram(k=4)], threads=1), Kernel(WallClock()))
    engine.close()
    model.close()
    assert isinstance(engine.forming, FormTimes)
    (told,) = (setting for setting in settings if setting.name == "form_times")
    assert "for a row" in told.value
