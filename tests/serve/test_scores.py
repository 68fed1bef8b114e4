"""The choices of a step's scores are those of `sampling.pick` on the right row, position and text."""

from __future__ import annotations

import numpy as np
import pytest

from lightwork.decode.proposers import ROOT, Draft
from lightwork.decode.sampling import Sampling, describe, pick
from lightwork.serve.schedulers import Chunk, Step
from lightwork.serve.scores import LogitScores
from lightwork.serve.sequence import Request
from lightwork.serve.sequence import Sequence as Seq

VOCABULARY = 50
TREE = Draft((4, 5, 6, 7), (ROOT, ROOT, 0, 2))


def sequence(i: int, how: Sampling, computed: int, known: int, **settings: int) -> Seq:
    tokens = [(7 * i + t) % VOCABULARY for t in range(known)]
    request = Request(prompt=tuple(tokens[:6]), max_tokens=20, sampling=how, **settings)
    return Seq(i, request, how, None, 0.0, tokens, 6, computed)


@pytest.mark.parametrize(
    "how",
    [
        Sampling(temperature=0.0),
        Sampling(seed=3),
        Sampling(seed=3, top_k=5, top_p=0.9),
        Sampling(seed=3, logprobs=2),
        Sampling(temperature=0.0, frequency_penalty=1.5, repetition_penalty=1.3),
        Sampling(seed=9, logit_bias=((3, 4.0),)),
    ],
    ids=repr,
)
def test_every_kind_of_chunk_is_chosen_like_one_row(how: Sampling) -> None:
    """A prompt's part, a whole prompt with its log-probabilities, a decode, and a decode with a tree."""
    seqs = [
        sequence(0, how, 0, 6),
        sequence(1, how, 0, 6, prompt_logprobs=1),
        sequence(2, how, 8, 9),
        sequence(3, how, 10, 11),
    ]
    counts = [4, 6, 1, 1]
    chunks = [Chunk(s, s.computed, n) for s, n in zip(seqs, counts, strict=True)]
    step = Step(chunks=chunks, drafts=[Draft(), Draft(), Draft(), TREE])
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (0 + 6 + 1 + 5, VOCABULARY)).astype(np.float32)
    scores = LogitScores(step, logits, [0, 0, 6, 7])

    def expected(row: int, seq: Seq, emitted: tuple[int, ...]) -> object:
        output = (*seq.tokens[seq.prompt_len :], *emitted)
        return pick(logits[row], how, seq.known + len(emitted), seq.tokens[: seq.prompt_len], output)

    assert scores.pick(1, ROOT, ()) == expected(5, seqs[1], ())
    assert scores.pick(2, ROOT, ()) == expected(6, seqs[2], ())
    for node, emitted in [(ROOT, ()), (0, (4,)), (1, (5,)), (2, (4, 6)), (3, (4, 6, 7))]:
        assert scores.pick(3, node, emitted) == expected(8 + node, seqs[3], emitted)
    assert scores.prompt(1, 1) == [describe(logits[i], seqs[1].tokens[i + 1], 1) for i in range(5)]


def test_a_choice_at_another_depth_than_the_draft_has_is_made_when_asked_for() -> None:
    how = Sampling(seed=1)
    seq = sequence(0, how, 8, 9)
    logits = np.random.default_rng(1).normal(0, 1, (5, VOCABULARY)).astype(np.float32)
    scores = LogitScores(Step(chunks=[Chunk(seq, 8, 1)], drafts=[TREE]), logits, [0])
    for emitted in [(), (1,), (1, 2)]:
        assert scores.pick(0, 0, emitted) == pick(logits[1], how, 9 + len(emitted), (), ())
