"""Trees of guesses and probes: within their rows, probabilities sum to 1, and no other policy is better."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightwork.decode.proposers import ROOT
from lightwork.decode.tree import (
    Floats,
    Tree,
    Trees,
    all_trees,
    best_rows,
    best_trees,
    concave,
    most_accurate,
)

USUAL = np.array([[0.48, 0.14, 0.07, 0.05], [0.26, 0.15, 0.08, 0.06], [0.16, 0.12, 0.08, 0.06]])
PERFECT, USELESS = np.array([[1.0, 0.0]] * 2), np.zeros((2, 2))


@st.composite
def accuracies(draw: st.DrawFn, levels: int = 3, ranks: int = 3) -> Floats:
    """Each level's fall by rank and sum to at most 1."""
    shares = st.lists(st.floats(0, 1), min_size=ranks + 1, max_size=ranks + 1)
    rows = [np.array(draw(shares)) + 1e-3 for _ in range(draw(st.integers(1, levels)))]
    return np.array([np.sort((row / row.sum())[:-1])[::-1] for row in rows])


@settings(max_examples=60)
@given(accuracy=accuracies(), rows=st.integers(0, 12), virtual=st.integers(1, 3))
def test_every_tree_keeps_to_its_rows_and_every_chain_is_one(
    accuracy: Floats, rows: int, virtual: int
) -> None:
    found = best_trees(accuracy, rows, None, virtual)
    assert len(found.by_state) == len(accuracy) + 1
    for state, tree in enumerate(found.by_state):
        assert len(tree) <= rows
        draft = tree.draft([[10 * level + rank for rank in range(3)] for level in range(state)])
        draft.check("tree", max_rows=rows, vocab_size=100, num_probes=virtual * len(accuracy))
        assert len(draft) == len(tree)
        assert draft.depth() <= state
        assert tree.ends(accuracy).sum() == pytest.approx(1.0)
    assert found.chain_SS.sum(1) == pytest.approx(1.0)
    assert found.share_S.sum() == pytest.approx(1.0)
    assert found.share_S @ found.chain_SS == pytest.approx(found.share_S, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(accuracy=accuracies(levels=2, ranks=2), rows=st.integers(1, 5))
def test_no_policy_makes_more_tokens_per_step(accuracy: Floats, rows: int) -> None:
    """Against all trees in every state, by value iteration."""
    best = exhaustive(accuracy, rows)
    ours = best_trees(accuracy, rows).tokens_per_step
    assert ours <= best + 1e-6
    assert ours >= 0.98 * best


def exhaustive(accuracy: Floats, rows: int) -> float:
    """Tokens per step of the best policy over every tree of at most `rows` rows."""
    options = [_options(accuracy, state, rows) for state in range(len(accuracy) + 1)]
    values = np.zeros(len(options))
    for _ in range(800):
        ahead = [gains + chances @ values for gains, chances in options]
        values = (values + [each.max() for each in ahead]) / 2  # half-way, so that no period goes on
        values -= values[0]
    best = [int(each.argmax()) for each in ahead]
    chain = np.array([chances[i] for i, (_, chances) in zip(best, options, strict=True)])
    shares = np.linalg.matrix_power((chain + np.eye(len(chain))) / 2, 4096)[0]
    return 1.0 + float(shares @ [gains[i] for i, (gains, _) in zip(best, options, strict=True)])


def _options(accuracy: Floats, state: int, rows: int) -> tuple[Floats, Floats]:
    """Of every tree, tokens accepted and chances of the next states."""
    levels, ranks = accuracy.shape
    paths = [path for depth in range(1, state + 1) for path in product(range(ranks), repeat=depth)]
    gains, chances = [], []
    for chosen in product((False, True), repeat=len(paths)):
        nodes = [path for path, one in zip(paths, chosen, strict=True) if one]
        if len(nodes) > rows or any(path[:-1] and path[:-1] not in nodes for path in nodes):
            continue
        reach = {path: float(np.prod([accuracy[i, rank] for i, rank in enumerate(path)])) for path in nodes}
        ends = [1.0 - sum(reach[path] for path in nodes if len(path) == 1)]
        ends += [reach[path] - sum(reach[one] for one in nodes if one[:-1] == path) for path in nodes]
        for probes in product(range(levels + 1), repeat=len(ends)):
            if len(nodes) + sum(probes) <= rows:
                gains.append(sum(reach.values()))
                chances.append(np.bincount(probes, ends, levels + 1))
    return np.array(gains), np.array(chances)


def test_more_rows_never_make_fewer_tokens() -> None:
    tokens = [found.tokens_per_step for found in all_trees(USUAL, 24)]
    assert tokens[0] == 1.0
    assert tokens == sorted(tokens)
    assert 1.5 < tokens[-1] < 1.0 + USUAL[0].sum() * (1.0 + USUAL[1].sum() * (1.0 + USUAL[2].sum()))


def test_certain_guesses_are_all_asked_for_and_useless_ones_never() -> None:
    found = best_trees(PERFECT, 4)
    assert found.tokens_per_step == pytest.approx(3.0)
    assert found.by_state[2] == Tree((ROOT, 0), (0, 0), (0, 0, 2))
    assert all_trees(USELESS, 3)[-1].tokens_per_step == 1.0


def test_guesses_come_in_order_of_how_likely_they_are() -> None:
    parents, ranks = most_accurate(USUAL[:2], 5)
    assert (parents, ranks) == ((-1, -1, 0, 0, -1), (0, 1, 0, 1, 2))
    assert most_accurate(USUAL[:1], 9) == ((-1,) * 4, (0, 1, 2, 3))
    assert most_accurate(USUAL[:0], 9) == ((), ())


def test_the_likeliest_path_stands_first() -> None:
    tree = best_trees(np.array([[0.7, 0.2]] * 3), 16).by_state[3]
    assert tree.parents[:3] == (ROOT, 0, 1)
    assert tree.ranks[:3] == (0, 0, 0)


def test_a_draft_holds_guesses_and_then_chains_of_probes() -> None:
    tree = Tree((ROOT, 0), (1, 0), (1, 0, 2))
    draft = tree.draft([[7, 8], [9]])
    assert draft.tokens == (8, 9, -1, -1, -2)
    assert draft.parents == (ROOT, 0, ROOT, 1, 3)


def test_virtual_tokens_are_chains_that_do_not_see_each_other() -> None:
    tree = Tree((ROOT,), (0,), (2, 1), virtual=2)
    draft = tree.draft([[7]])
    assert len(tree) == len(draft) == 7
    assert draft.tokens == (7, -1, -2, -3, -4, -1, -2)
    assert draft.parents == (ROOT, ROOT, ROOT, 1, 2, 0, 0)
    assert draft.probes(ROOT) == [1, 2, 3, 4]
    assert draft.probes(0) == [5, 6]


def test_prompts_of_more_rows_are_fewer() -> None:
    tokens = [all_trees(USUAL, 12, virtual)[-1].tokens_per_step for virtual in (1, 2, 4, 13)]
    assert tokens == sorted(tokens, reverse=True)
    assert tokens[2] > tokens[3] == 1.0


def test_the_size_follows_what_rows_cost() -> None:
    tokens = [found.tokens_per_step for found in all_trees(USUAL, 24)]
    assert best_rows(tokens, lambda rows: 1.0) == tokens.index(max(tokens))
    assert best_rows(tokens, lambda rows: 1.0 + rows) == 0
    assert 0 < best_rows(tokens, lambda rows: 10.0 + rows) < best_rows(tokens, lambda rows: 100.0 + rows)


@given(st.lists(st.floats(0, 9), min_size=2, max_size=12))
def test_the_concave_curve_is_the_least_above(tokens: list[float]) -> None:
    gains = concave(tokens)
    curve = tokens[0] + np.cumsum([0.0, *gains])
    assert (np.diff(gains) <= 1e-9).all()
    assert (curve >= np.array(tokens) - 1e-9).all()
    assert curve[-1] == pytest.approx(tokens[-1], abs=1e-9)


def test_a_chain_with_a_period_has_steady_shares() -> None:
    """Levels of guesses after every step, and none after the next: half of the steps each."""
    flips = Trees(np.array([[0.5]]), (Tree((), (), (1,)), Tree((ROOT,), (0,), (0, 0))))
    assert flips.share_S == pytest.approx([0.5, 0.5])
    assert flips.tokens_per_step == pytest.approx(1.25)
