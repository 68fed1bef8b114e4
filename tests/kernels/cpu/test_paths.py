"""A row of a draft tree has the bits that its path has as a text, wherever the tree lists its nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

import numpy as np
import pytest

pytest.importorskip("numba")
pytest.importorskip("torch")

from steps import PAGE, KeptAs, Logits, Part, Steps

from lightwork import models
from lightwork.kernels.cpu.formats import BF16_DOT, F32, INT8_DOT
from lightwork.kernels.cpu.state import NUM_CHUNKS, NUM_ROWS, PATH
from lightwork.models.compiled import CompiledModel
from lightwork.models.layer_plan import LayerPlan

Make = Callable[..., Path]

KNOWN = (63, 64, 65, 255, 256, 257)
"""Known tokens before a tree: around the ends of pages and of chunks."""
SHAPES = {
    "a head each": ({"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 24}, None),
    "one of four": ({"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64}, None),
    "a window": ({"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 80}, 62),
}
KEPT = {"float32": F32, "bfloat16": BF16_DOT, "int8": INT8_DOT}


@pytest.fixture(scope="module", params=[(s, k) for s in SHAPES for k in KEPT], ids=" in ".join)
def model(request: pytest.FixtureRequest, checkpoint: Make) -> Iterator[CompiledModel]:
    """Two layers: what attention of the first gives is the second's keys."""
    shape, window = SHAPES[request.param[0]]
    config = {"num_hidden_layers": 2, "sliding_window": window, "max_position_embeddings": 2048}
    made = models.load_compiled(
        str(checkpoint("mistral", **shape, **config)), precision=KeptAs(kv=KEPT[request.param[1]])
    )
    yield made
    made.close()


def grown(seed: int, nodes: int) -> tuple[int, ...]:
    """The parents of a random tree: some branch at its root, others run deep."""
    rng, near = Random(seed), Random(seed).choice((1, 3, nodes))
    return tuple(rng.randint(max(-1, node - near - 1), node - 1) for node in range(nodes))


def path(part: Part, node: int) -> list[int]:
    mask = part.masks()[node]
    return [other for other in range(node + 1) if mask >> other & 1]


def is_leaf(part: Part, node: int) -> bool:
    return node not in part.parents


def decoded(steps: Steps, part: Part, nodes: Sequence[int]) -> list[Logits]:
    """The tokens of these nodes as a text behind the part's known tokens, one in a step."""
    tokens, found = part.tokens()[part.count :], []
    for i, node in enumerate(nodes):
        rows = steps.rows([Part(part.seq, part.known + i, 1)])
        rows.tokens[:] = tokens[node]
        found.append(np.array(steps.model.logits(rows, steps.pool))[0])
    return found


def check(steps: Steps, parts: Sequence[Part], found: Sequence[Logits]) -> None:
    """That the parts' nodes have the logits of plain decoding. It writes over their keys."""
    for part, of_part in zip(parts, found, strict=True):
        for leaf in range(len(part.parents)):
            if is_leaf(part, leaf):
                nodes = path(part, leaf)
                for node, expected in zip(nodes, decoded(steps, part, nodes), strict=True):
                    np.testing.assert_array_equal(of_part[part.count + node], expected)


def test_rows_of_trees_have_the_bits_of_plain_decoding(model: CompiledModel) -> None:
    parts = [Part(i, known - 1, 1, grown(i, 7 + i)) for i, known in enumerate(KNOWN)]
    for threads in (1, 2, 3):
        model.set_threads(threads)
        steps = Steps(model)
        check(steps, parts, steps.after(parts))


def test_the_largest_tree_crosses_pages_and_chunks(model: CompiledModel) -> None:
    """A chain of 60 nodes that begins behind three siblings; each of its nodes lies three places late."""
    late = Part(0, 247, 3, (-1, -1, -1, -1, *range(3, 63)))
    broad = Part(1, 500, 1, (-1,) * 64)
    model.set_threads(2)
    steps = Steps(model)
    found = steps.after([late, broad])
    check(steps, [late], found[:1])
    broad_found = found[1][broad.count :]
    for node in (0, 1, 63):
        np.testing.assert_array_equal(decoded(steps, broad, [node])[0], broad_found[node])


def test_trees_on_keys_that_others_share(model: CompiledModel) -> None:
    """Two texts on one prompt, each with a tree; the second of them has tokens of its own before it."""
    model.set_threads(2)
    steps = Steps(model)
    steps.run([Part(0, 0, 600)])
    steps.fork(1, 0, 9)
    steps.run([Part(1, 9 * PAGE, 50)])
    parts = [Part(0, 599, 1, grown(5, 9)), Part(1, 9 * PAGE + 49, 1, grown(6, 9)), Part(2, 0, 40)]
    check(steps, parts, steps.run(parts))


def test_layers_in_groups_have_paths_of_their_own(checkpoint: Make) -> None:
    model = models.load_compiled(str(checkpoint("llama", num_hidden_layers=4)), precision=KeptAs())
    model.set_threads(2)
    plan = LayerPlan(num_layers=4, groups=((0,), (1, 2), (3,)))
    part = Part(0, 70, 1, grown(1, 9))
    steps = Steps(model)
    steps.begin([part])
    got = np.array(model.logits(steps.rows([part]), steps.pool, plan))
    for leaf in filter(lambda node: is_leaf(part, node), range(len(part.parents))):
        for i, node in enumerate(nodes := path(part, leaf)):
            rows = steps.rows([Part(0, part.known + i, 1)])
            rows.tokens[:] = part.tokens()[part.count + nodes[i]]
            alone = np.array(model.logits(rows, steps.pool, plan))[0]
            np.testing.assert_array_equal(got[part.count + node], alone)
    model.close()


def test_a_chain_is_read_where_it_lies(checkpoint: Make) -> None:
    """Of a tree, all rows are one tile, with the keys of the longest path."""
    model = models.load_compiled(str(checkpoint("llama")), precision=KeptAs())
    model.set_threads(1)
    steps = Steps(model)
    for parents, keys in (((-1, 0, 1), 0), ((-1, 0, 1, 0, -1), 303)):
        part = Part(0, 299, 1, parents)
        steps.after([part])
        plan = model._state.arrays["plan"]
        assert (plan[0, 0], plan[0, 2]) == (0, 1)
        assert [plan[1, column] for column in (NUM_ROWS, NUM_CHUNKS, PATH)] == [part.num_rows, 2, keys]
    model.close()
