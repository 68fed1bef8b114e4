"""A draft model that guesses its own tokens writes the same chains, in fewer passes."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

from test_draft_models import TEMPERATURES, requests, serve, texts

from lightwork.decode.proposers import Draft, Target
from lightwork.decode.proposers._own_guesses import OwnGuesses, Written
from lightwork.decode.proposers.draft_model import DraftModel
from lightwork.decode.proposers.pearl import Pearl
from lightwork.decode.proposers.ppd import PPD, PromptDrafter, most_likely
from lightwork.decode.sampling import Sampling
from lightwork.errors import CheckpointError
from lightwork.models.compiled import CompiledModel
from lightwork.serve.plan import Plan
from lightwork.techniques import parse

ALONE = DraftModel(model="tiny:llama", k=6)
GUESSING = DraftModel(model="tiny:llama", k=6, guess=PPD(k=10))


@dataclass
class Text:
    id: int
    tokens: list[int]
    prompt_len: int
    sampling: Sampling


@TEMPERATURES
def test_chains_are_those_written_one_by_one_in_fewer_passes(
    monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    """Of texts that go on as drafted, or part from it after two tokens."""
    passes: Counter[CompiledModel] = Counter()
    logits = CompiledModel.logits

    def counted(self: CompiledModel, *args: Any) -> Any:
        passes[self] += 1
        return logits(self, *args)

    monkeypatch.setattr(CompiledModel, "logits", counted)
    beside = ThreadPoolExecutor(1)
    target = Target(model="tiny:llama", on="cpu", max_seqs=2, max_len=512, beside=beside)
    alone, guessing = ALONE.begin(target), GUESSING.begin(target)
    some = [
        Text(i, [*r.prompt], len(r.prompt), r.sampling) for i, r in enumerate(requests(temperature, num=2))
    ]
    for i in range(12):
        drafts = alone.propose(some, [6, 5])
        assert guessing.propose(some, [6, 5]) == drafts
        assert [len(draft) for draft in drafts] == [6, 5]
        for text, draft in zip(some, drafts, strict=True):
            text.tokens += draft.tokens if i % 3 else (*draft.tokens[:2], 7)
    guessing.check()
    for text in some:
        guessing.forget(text.id)
    assert guessing.usage == 0.0
    assert passes[guessing._model] < passes[alone._model]
    for runner in (alone, guessing):
        runner.close()
    beside.shutdown()


@pytest.mark.parametrize("use", [GUESSING, Pearl(inner=GUESSING)], ids=["before a step", "beside it"])
def test_served_texts_are_those_of_plain_decoding(use: DraftModel | Pearl) -> None:
    load = requests(0.8, num=3)
    engine, seqs = serve([use], load, max_seqs=2)
    assert texts(seqs) == texts(serve([], load)[1])
    assert sum(seq.accepted for seq in seqs) > 100
    assert engine._drafting is not None
    assert engine._drafting.broken is None


def test_guesses_end_where_the_model_does() -> None:
    own = OwnGuesses(PromptDrafter(PPD(k=8), np.array([[0.5, 0.2], [0.4, 0.1]]), most_likely), max_len=4)
    how = Sampling(temperature=0.0)
    assert own.draft([Written(0, [1, 2, 3], 1, how)]) == [Draft((-1,), (-1,))]
    assert own.draft([Written(0, [1, 2, 3, 4], 1, how)]) == [Draft()]


def test_a_draft_model_without_prompts_is_refused() -> None:
    use = DraftModel(guess=PPD())
    assert parse(repr(use)) == use
    with pytest.raises(CheckpointError, match="holds no prompt tokens"):
        serve([use], requests(0.0, num=1))


def test_only_prompts_of_the_target_need_it_in_one_process() -> None:
    assert Plan(tp=2, use=(GUESSING,)).techniques()["proposer"] == GUESSING
