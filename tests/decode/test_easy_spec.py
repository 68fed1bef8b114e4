"""EasySpec: what it drafts, that its keys and values are repaired, and what that is worth."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

from test_draft_models import SAME, requests, serve, texts

from lightwork.decode.proposers import Target, Text
from lightwork.decode.proposers._agreement import agreement
from lightwork.decode.proposers.draft_model import DraftRunner
from lightwork.decode.proposers.easy_spec import EasySpec
from lightwork.decode.proposers.pearl import Pearl
from lightwork.errors import SpecError
from lightwork.serve.sequence import Sequence as Seq
from lightwork.techniques import parse

LAYERS = 9
SINGLES = tuple((i,) for i in range(LAYERS))
PAIRS = ((0,), (1, 2), (3, 4), (5, 6), (7,), (8,))
WHOLE = (tuple(range(LAYERS)),)


def drafter(how: Any) -> DraftRunner:
    target = Target(model="tiny:llama", on="cpu", max_seqs=2, max_len=512, beside=ThreadPoolExecutor(1))
    found: DraftRunner = how.begin(target)
    return found


@pytest.fixture(scope="module")
def said() -> tuple[Text, list[int]]:
    """A text, and how the target goes on with it."""
    (request,) = requests(0.0, num=1)
    seq = Seq(7, request, request.sampling, None, 0.0, [*request.prompt], len(request.prompt))
    return seq, texts(serve([], [request])[1])[0]


def rounds(how: DraftRunner, text: Text, right: list[int]) -> Iterator[list[int]]:
    """Its drafts, one after the other, each verified, until the text is told."""
    start = len(text.tokens)
    while (told := len(text.tokens) - start) < len(right) - how.k:
        draft = list(how.propose([text], [how.k])[0].tokens)
        yield draft
        text.tokens += right[told : told + agreement(draft, right[told:]) + 1]
    del text.tokens[start:]
    how.forget(text.id)


def test_groups_of_one_draft_what_the_drafter_drafts(said: tuple[Text, list[int]]) -> None:
    plain, ones = drafter(SAME), drafter(EasySpec(inner=SAME, groups=SINGLES))
    drafts = [*rounds(plain, *said)]
    assert [*rounds(ones, *said)] == drafts
    for mine, theirs in zip(_arrays(ones), _arrays(plain), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def _arrays(how: DraftRunner) -> list[Any]:
    pool: Any = how._pool
    found: list[Any] = pool._arrays()
    return found


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("groups", [(), PAIRS, WHOLE, ((0, 1, 2, 3), (4,), (5, 6, 7, 8))], ids=len)
def test_texts_are_the_targets_for_every_grouping(groups: Any, temperature: float) -> None:
    load = requests(temperature, num=3)
    right = texts(serve([], load)[1])
    for use in (EasySpec(inner=SAME, groups=groups), Pearl(inner=EasySpec(inner=SAME, groups=groups))):
        seqs = serve([use], load)[1]
        assert texts(seqs) == right
        assert 0 < sum(seq.accepted for seq in seqs) <= sum(seq.drafted for seq in seqs)


def kept(how: DraftRunner, text: Text) -> list[Any]:
    """Keys and values of a text, token by token."""
    runner: Any = how
    table = runner._kv.table(text.id)
    size = runner._kv.block_size
    slots = [table[i // size] * size + i % size for i in range(len(text.tokens))]
    return [np.concatenate([part.ravel() for part in runner._pool._of_slot(slot)]) for slot in slots]


def test_calibrated_keys_and_values_are_those_computed_from_scratch(said: tuple[Text, list[int]]) -> None:
    """Bit for bit, after each draft, over all that is committed; without calibration they are not."""
    text, right = said
    equal: dict[bool, list[bool]] = {True: [], False: []}
    for calibrate, seen in equal.items():
        how = drafter(EasySpec(inner=SAME, groups=PAIRS, calibrate=calibrate))
        for _ in rounds(how, text, right):
            mine = kept(how, text)
            scratch = drafter(SAME)
            scratch.propose([text], [1])
            seen.append(all(map(np.array_equal, mine, kept(scratch, text))))
    assert len(equal[True]) > 10
    assert all(equal[True])
    assert equal[False][0]  # the pass over the prompt is exact
    assert not any(equal[False][1:])


def test_calibration_is_worth_its_rows() -> None:
    """A larger share of drafted tokens is right with it; and there is something to lose."""
    load = requests(1.0)
    shares = {}
    for calibrate in (True, False):
        _, seqs = serve([EasySpec(inner=SAME, groups=PAIRS, calibrate=calibrate)], load, max_seqs=1)
        shares[calibrate] = sum(seq.accepted for seq in seqs) / sum(seq.drafted for seq in seqs)
    assert shares[False] <= shares[True] < 1.0


def test_groups_that_are_not_the_drafters_are_refused_before_it_is_loaded() -> None:
    with pytest.raises(SpecError, match="2 missing; 1 repeated"):
        drafter(EasySpec(inner=SAME, groups=((0, 1), (1, 3), *SINGLES[4:])))
    text = "EasySpec(inner=DraftModel(model='tiny:llama'), groups=((0, 1), (2,)))"
    with pytest.raises(SpecError, match="3, 4, 5, 6, 7, 8 missing"):
        serve([parse(text)], requests(0.0, num=1))
    assert repr(drafter(EasySpec())) == repr(EasySpec())
