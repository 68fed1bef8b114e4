"""Prefix groups: which prefixes are shared, that each is computed once, and what if it cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, combinations
from typing import Any

import numpy as np
import pytest
from engines import UnitCost, expected, make_engine, request
from hypothesis import given, settings
from hypothesis import strategies as st

from lightwork.errors import CapacityError
from lightwork.serve.engine import Engine
from lightwork.serve.schedulers import Step
from lightwork.serve.schedulers._shared_prefixes import shared_prefixes
from lightwork.serve.schedulers.prefix_groups import PrefixGroups
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.schedulers.split_fuse import SplitFuse
from lightwork.serve.sequence import Request
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulate import run_load


def prefixes(prompt: Sequence[int], block_size: int) -> set[tuple[int, ...]]:
    """Those that a prompt may share: whole blocks, all but its last token at most."""
    return {tuple(prompt[:n]) for n in range(block_size, len(prompt), block_size)}


def most_saved(prompts: list[list[int]], block_size: int) -> int:
    """By trying every set of prefixes to open: each prompt uses the longest of them it has."""
    of = [prefixes(prompt, block_size) for prompt in prompts]
    common = [p for p in set(chain(*of)) if sum(p in own for own in of) > 1]
    best = 0
    for opened in chain.from_iterable(combinations(common, k) for k in range(len(common) + 1)):
        uses = [max((p for p in opened if p in own), key=len, default=()) for own in of]
        best = max(best, sum(map(len, uses)) - sum(map(len, set(uses))))
    return best


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=5),
    st.integers(1, 2),
)
def test_no_other_choice_of_one_prefix_each_saves_more(prompts: list[list[int]], block_size: int) -> None:
    groups = shared_prefixes(prompts, block_size)
    assert sum(group.saved_tokens for group in groups) == most_saved(prompts, block_size)
    for length, members in groups:
        assert len(members) > 1
        assert len({tuple(prompts[i][:length]) for i in members}) == 1
        assert all(len(prompts[i]) > length for i in members)
    numbers = [i for group in groups for i in group.members]
    assert len(numbers) == len(set(numbers))


def test_a_thousand_prompts_each_a_prefix_of_the_next_are_grouped() -> None:
    groups = shared_prefixes([[1] * n for n in range(1, 1001)])
    assert sum(group.saved_tokens for group in groups) > 0
    assert shared_prefixes([]) == []


def documents(num: int, degree: int, length: int) -> list[Request]:
    """Questions on documents, one document after the other, no two questions alike."""
    rng = np.random.default_rng(0)
    texts = [[d, *rng.integers(0, 50, length - 1).tolist()] for d in range(num)]
    asked = [
        request([*texts[d], d + q, q, *rng.integers(0, 50, 3).tolist()], max_tokens=4 + (d + q) % 7)
        for q in range(degree)
        for d in range(num)
    ]
    return [asked[i] for i in rng.permutation(len(asked))]


def serve(scheduler: Any, load: Sequence[Request], **engine: Any) -> tuple[Engine, list[Seq]]:
    made = make_engine(scheduler, **engine)
    seqs = run_load(made, [0.0] * len(load), load)
    assert [seq.tokens[seq.prompt_len :] for seq in seqs] == [expected(r) for r in load]
    made.kv.check()
    assert made.kv.free == made.kv.total
    return made, seqs


@pytest.mark.parametrize("blocks", [16, 24, 40, 400])
@pytest.mark.parametrize("inner", [Sarathi(chunk=16), SplitFuse(tokens=16)], ids=repr)
def test_saved_tokens_are_those_predicted_whatever_the_memory(inner: Any, blocks: int) -> None:
    load = documents(num=6, degree=5, length=30)
    predicted = sum(g.saved_tokens for g in shared_prefixes([r.prompt for r in load], block_size=4))
    assert predicted == 6 * 4 * 28
    _, seqs = serve(PrefixGroups(inner=inner), load, blocks=blocks)
    assert sum(seq.cached for seq in seqs) == predicted
    assert sum(seq.num_preempted for seq in seqs) == 0


def test_the_cache_saves_less_when_memory_is_short() -> None:
    load = documents(num=6, degree=5, length=30)
    saved = [sum(s.cached for s in serve(Sarathi(chunk=16), load, blocks=b)[1]) for b in (16, 400)]
    assert saved[0] < saved[1] / 2


def test_groups_that_decode_most_go_first() -> None:
    load = [request([d, 1, 2, 3, 4, q, q + 1], max_tokens=2 + 8 * d) for q in range(3) for d in range(3)]
    first, last = (
        serve(PrefixGroups(inner=Sarathi(chunk=8), decode_heavy_first=d), load, max_seqs=3)[1]
        for d in (True, False)
    )
    assert [begun(first, d) for d in range(3)] == sorted((begun(first, d) for d in range(3)), reverse=True)
    assert [begun(last, d) for d in range(3)] == sorted(begun(last, d) for d in range(3))


def begun(seqs: list[Seq], document: int) -> float:
    return min(seq.started_s or 0.0 for seq in seqs if seq.tokens[0] == document)


def test_equal_prompts_recompute_one_token_each() -> None:
    _, seqs = serve(PrefixGroups(), [request(range(9), max_tokens=3)] * 4)
    assert sorted(seq.cached for seq in seqs) == [0, 8, 8, 8]


def test_a_prompt_that_begins_another_is_shared_but_for_its_last_token() -> None:
    _, seqs = serve(PrefixGroups(), [request(range(9), max_tokens=3), request(range(20), max_tokens=3)])
    assert sorted(seq.cached for seq in seqs) == [0, 8]


def test_a_prompt_too_long_fails_alone() -> None:
    engine = make_engine(PrefixGroups(), blocks=8)
    for prompt in (range(8), range(9), range(100)):
        if len(prompt) == 100:
            with pytest.raises(CapacityError):
                engine.submit(request(prompt))
        else:
            engine.submit(request(prompt))
    engine.kernel.spawn(engine.run())
    engine.kernel.run(engine.drained())
    engine.kv.check()


def test_what_is_in_the_cache_already_is_shared_as_usual() -> None:
    engine = make_engine(PrefixGroups())
    load = [request([*range(10), q, q], max_tokens=3) for q in range(4)]
    seqs = run_load(engine, [0.0, 0.0, 1.0, 1.0], load)
    assert sorted(seq.cached for seq in seqs[:2]) == [0, 8]
    assert [seq.cached for seq in seqs[2:]] == [10, 10]


def test_the_rest_of_a_group_goes_on_when_the_first_is_cancelled() -> None:
    engine = make_engine(PrefixGroups(inner=Sarathi(chunk=4)))
    load = [request([*range(20), q, q], max_tokens=3) for q in range(3)]

    async def main() -> None:
        seqs = [engine.submit(r)[0] for r in load]
        await engine.kernel.sleep(0.006)
        first = next(seq for seq in seqs if seq.computed)
        engine.cancel([first])
        await engine.drained()
        rest = [seq for seq in seqs if seq is not first]
        assert [seq.finished for seq in rest] == ["length", "length"]
        assert sum(seq.cached for seq in rest) == 20

    engine.kernel.spawn(engine.run())
    engine.kernel.run(main())
    engine.kv.check()
    assert engine.kv.free == engine.kv.total


def test_a_step_says_which_decodes_read_one_prefix() -> None:
    """So that reading it once can be priced: each of the group counts once it only decodes."""
    seen: list[tuple[int, int]] = []

    class Priced(UnitCost):
        def stages(self, step: Step) -> Sequence[float]:
            seen.extend(step.shared)
            assert all(num <= sum(c.count == 1 for c in step.chunks) for _, num in step.shared)
            return super().stages(step)

    engine = make_engine(PrefixGroups(), blocks=64)
    engine.runner.cost = Priced()
    shared = list(range(16))
    load = [request([*shared, 100 + i], max_tokens=8) for i in range(3)] + [
        request(range(50, 60), max_tokens=8)
    ]
    run_load(engine, [0.0] * 4, load)
    assert (16, 3) in seen
    assert {tokens for tokens, _ in seen} == {16}
