"""What the claims on corrections are judged by: new sentences, mixed batches, words in common."""

from __future__ import annotations

from itertools import islice

import pytest

pytest.importorskip("torch")

from lightwork.claims import _corrector
from lightwork.claims._corrector import BATCH, SENTENCES, batches, corrections, in_common, judged


def test_judged_sentences_are_others_than_those_learnt_from() -> None:
    sources, targets = judged(0)
    end = _corrector.blocks().end
    rows = [row for batch in islice(batches("train"), 4) for row in batch.tokens_BT.tolist()]
    learnt = {tuple(token for token in row if token != end) for row in rows}
    assert len(sources) == len(targets) == SENTENCES
    assert not learnt & {tuple(target[:-1]) for target in targets}
    assert all(source[-1] == target[-1] == end for source, target in zip(sources, targets, strict=True))
    assert judged(1)[0] != sources


def test_a_source_and_its_output_fit_and_are_drafted_at_once() -> None:
    for source, target in islice(corrections("lengths", 0.2), 300):
        assert max(len(source), len(target)) <= 64
        assert len(source) + 1 + len(target) < _corrector.spec().max_len


def test_a_batch_has_sentences_without_mistakes() -> None:
    batch = next(batches("mixed"))
    pairs = zip(batch.sources_BS.tolist(), batch.tokens_BT.tolist(), strict=True)
    end = _corrector.blocks().end
    right = [s for s, t in pairs if [x for x in s if x != end] == [x for x in t if x != end]]
    assert BATCH // 8 <= len(right) < BATCH // 2


@pytest.mark.parametrize(
    ("a", "b", "num"), [([], [1], 0), ([1, 2, 3], [1, 2, 3], 3), ([1, 2, 3, 4], [2, 9, 4, 1], 2)]
)
def test_words_in_common_are_in_the_same_order(a: list[int], b: list[int], num: int) -> None:
    assert in_common(a, b) == in_common(b, a) == num
