"""Drafts are trees, n-grams find repetitions, and matching keeps what plain decoding would say."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightwork.decode.proposers import ROOT, Draft
from lightwork.decode.proposers.ngram import Ngram
from lightwork.decode.sampling import Pick, Sampling
from lightwork.decode.verifiers.match import Match
from lightwork.errors import InvariantError, RangeError


@dataclass
class Text:
    tokens: list[int]
    id: int = 0
    prompt_len: int = field(default=1)
    sampling: Sampling = field(default_factory=Sampling)


def propose(proposer: Ngram, tokens: list[int], rows: int = 10) -> tuple[int, ...]:
    return proposer.propose([Text(tokens)], [rows])[0].tokens


def test_ngram_continues_the_longest_repetition() -> None:
    assert propose(Ngram(k=3), [1, 2, 3, 4, 9, 2, 3, 5, 6, 2, 3]) == (4, 9, 2)
    assert propose(Ngram(k=3, n_max=2), [7, 8, 7, 9, 7]) == (8, 7, 9)
    assert propose(Ngram(k=3), [2, 3, 7, 1, 2, 3, 8, 1, 2, 3]) == (8, 1, 2)
    assert propose(Ngram(k=3, n_max=2), [2, 3, 7, 1, 2, 3, 8, 1, 2, 3]) == (7, 1, 2)
    assert propose(Ngram(k=3), [1, 2, 3]) == ()
    assert propose(Ngram(k=3), [5]) == ()
    assert propose(Ngram(k=8), [1, 2, 1, 2, 1], rows=1) == (2,)
    assert propose(Ngram(k=8), [1, 2, 1], rows=0) == ()


def test_ngram_never_matches_across_token_borders() -> None:
    tokens = [0x00010000, 0x00000001, 0x01000000, 0x00000100]
    assert propose(Ngram(), tokens) == ()


@given(tokens=st.lists(st.integers(0, 3), max_size=60), k=st.integers(1, 8), n=st.integers(1, 4))
def test_ngram_agrees_with_a_plain_search(tokens: list[int], k: int, n: int) -> None:
    expected: tuple[int, ...] = ()
    for width in range(min(n, len(tokens) - 1), 0, -1):
        starts = [i for i in range(len(tokens) - width) if tokens[i : i + width] == tokens[-width:]]
        if starts:
            expected = tuple(tokens[starts[0] + width : starts[0] + width + k])
            break
    assert propose(Ngram(k=k, n_max=n), tokens, rows=k) == expected


@given(seed=st.integers(0, 10_000), nodes=st.integers(0, 12), vocab=st.integers(1, 4))
def test_matching_emits_what_plain_decoding_would(seed: int, nodes: int, vocab: int) -> None:
    rng = random.Random(seed)
    draft = Draft(
        tuple(rng.randrange(vocab) for _ in range(nodes)), tuple(rng.randrange(-1, i) for i in range(nodes))
    )

    def target(emitted: list[int]) -> int:
        return random.Random(f"{seed}{emitted}").randrange(vocab)

    visited: list[int] = []

    def pick(node: int, emitted: list[int]) -> Pick:
        visited.append(node)
        return Pick(target(list(emitted)))

    verdict = Match().verify(draft, pick)  # type: ignore[arg-type]
    plain: list[int] = []
    for _ in verdict.emitted:
        plain.append(target(plain))
    assert [p.token for p in verdict.emitted] == plain
    assert visited == [ROOT, *verdict.path]
    assert [draft.tokens[n] for n in verdict.path] == plain[:-1]


@pytest.mark.parametrize(
    "draft",
    [
        Draft((1,), ()),
        Draft((1, 2), (-1, 1)),
        Draft((9,), (-1,)),
        Draft((-1,), (-1,)),
        Draft.chain(range(6)),
        Draft((1,), (-2,)),
        Draft((-3,), (-1,)),
        Draft((-1, 1), (-1, 0)),
    ],
    ids=repr,
)
def test_a_broken_draft_names_its_proposer(draft: Draft) -> None:
    with pytest.raises(InvariantError, match="Liar"):
        draft.check("Liar()", max_rows=5, vocab_size=8, num_probes=0 if draft.tokens == (-1,) else 2)


def test_probes_hang_in_chains_and_are_no_guesses() -> None:
    draft = Draft((4, 5, -1, -2, -1), (-1, 0, -1, 2, 1))
    draft.check("Honest()", max_rows=5, vocab_size=8, num_probes=2)
    assert [draft.probes(node) for node in (-1, 0, 1)] == [[2, 3], [], [4]]
    assert draft.depths() == [1, 2, 1, 2, 3]
    assert (draft.depth(), draft.num_guesses()) == (2, 2)
    assert Draft((-1, -2), (-1, 0)).depth() == 0


def test_depths_and_ancestors_of_a_tree() -> None:
    draft = Draft((1, 2, 3, 4), (-1, 0, 0, 2))
    assert draft.depths() == [1, 2, 2, 3]
    assert draft.ancestors() == [0b1, 0b11, 0b101, 0b1101]


@pytest.mark.parametrize("settings", [{"k": 0}, {"k": 65}, {"n_min": 3, "n_max": 2}, {"n_min": 0}], ids=str)
def test_ngram_refuses_impossible_settings(settings: dict[str, int]) -> None:
    with pytest.raises(RangeError, match="Ngram"):
        Ngram(**settings)
