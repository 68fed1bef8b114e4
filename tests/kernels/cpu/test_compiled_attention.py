"""The compiled attention inside a step: by its definition, and with bits of its own in every company."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

from steps import PAGE, Keep, KeptAs, Logits, Part, Steps, by_definition

from lightwork import models
from lightwork.kernels.cpu.formats import BF16_DOT, CODE4_DOT, CODE8, F32, INT8_DOT, MatrixFormat
from lightwork.kernels.cpu.state import NUM_CHUNKS, NUM_ROWS
from lightwork.models.compiled import CompiledModel
from lightwork.models.precisions.quant import Quant
from lightwork.models.precisions.stored import Stored

Make = Callable[..., Path]


def bytes_of(x: torch.Tensor) -> torch.Tensor:
    """Numbers of eight bits, a scale per token and head."""
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round() * scale


KEEP: dict[int, Keep] = {F32: lambda x: x, BF16_DOT: lambda x: x.bfloat16(), INT8_DOT: bytes_of}
TOLERANCE = {F32: 2e-5, BF16_DOT: 1.2e-2, INT8_DOT: 8e-3}
"""Of the largest logit. A key that is rounded may differ by its last bit: 2^-8, or 1/127 of the largest; in
bfloat16 queries and weights are rounded too."""

TREE = (-1, -1, 0, 2, 1)
DEEP = (-1, *range(17), -1, -1, 18)
"""A chain of 18 nodes, and more branches at its root: the rows of one tile are far from each other."""

PARTS: dict[str, list[Part]] = {
    "decodes": [Part(0, 0, 1), Part(1, 16, 1), Part(2, 129, 1), Part(3, 299, 1)],
    "chunks": [Part(4, 0, 1), Part(5, 0, 17), Part(6, 17, 113), Part(7, 130, 170)],
    "trees": [Part(8, 0, 6, (-1, 0)), Part(9, 16, 1, TREE), Part(10, 129, 1, TREE), Part(11, 297, 3, TREE)],
    "deep trees": [Part(12, 344, 1, DEEP), Part(13, 253, 2, DEEP), Part(14, 0, 1, DEEP)],
}
HEADS = [(4, 4), (4, 1), (8, 1)]
SHAPES = [
    (size, heads, (None, 5, 100)[(i + j) % 3])
    for i, size in enumerate((8, 24, 64, 80, 96, 128))
    for j, heads in enumerate(HEADS)
]


def shaped(make: Make, size: int, heads: tuple[int, int], window: int | None) -> Path:
    """A model of one layer."""
    shape = {"num_attention_heads": heads[0], "num_key_value_heads": heads[1], "head_dim": size}
    config = {"num_hidden_layers": 1, "sliding_window": window, "max_position_embeddings": 2048}
    return make("mistral", **shape, **config)


def close(got: Logits, expected: Logits, share: float) -> None:
    np.testing.assert_allclose(got, expected, atol=share * abs(expected).max(), rtol=0)


@pytest.mark.parametrize(
    ("size", "heads", "window"), SHAPES, ids=[f"D={s} H={h[0]} G={h[1]} window={w}" for s, h, w in SHAPES]
)
def test_attention_follows_its_definition(
    checkpoint: Make, size: int, heads: tuple[int, int], window: int | None
) -> None:
    compare(shaped(checkpoint, size, heads, window), [part for parts in PARTS.values() for part in parts])


@pytest.mark.parametrize("window", [None, 5, 100, 1000])
def test_a_long_context_follows_its_definition(checkpoint: Make, window: int | None) -> None:
    compare(shaped(checkpoint, 64, (4, 1), window), [Part(7, 1480, 20, TREE)])


def compare(folder: Path, parts: list[Part]) -> None:
    reference = models.load(str(folder))
    for kv, keep in KEEP.items():
        model = models.load_compiled(str(folder), precision=KeptAs(kv=kv))
        for part, got in zip(parts, Steps(model).after(parts), strict=True):
            close(got, by_definition(reference, part, keep), TOLERANCE[kv])
        model.close()


PRECISIONS = {
    "float32": ("float32", Stored()),
    "bfloat16": ("bfloat16", Stored()),
    "float16": ("float16", Stored()),
    **{
        repr(q): ("bfloat16", q)
        for q in (
            Quant(bits=16),
            Quant(bits=8),
            Quant(bits=4),
            Quant(bits=8, activations=32),
            Quant(bits=4, activations=32, table="nf4"),
            Quant(bits=8, group=32, kv_bits=8),
        )
    },
    "8 bits with offsets": ("float32", KeptAs(matrices=MatrixFormat(code=CODE8, group=64, affine=True))),
    "4 bits with offsets": ("float32", KeptAs(matrices=MatrixFormat(code=CODE4_DOT, group=32, affine=True))),
}
COMPANY = [Part(0, 250, 9), Part(1, 299, 1, TREE), Part(2, 0, 33), Part(3, 65, 1), Part(4, 129, 1, DEEP)]


@pytest.fixture(scope="module", params=PRECISIONS)
def model(request: pytest.FixtureRequest, checkpoint: Make) -> Iterator[CompiledModel]:
    """Three layers, two of them with a window; an MLP so wide and odd that its inputs are taken in panels."""
    stored, precision = PRECISIONS[request.param]
    shape = {"intermediate_size": 2501, "sliding_window": 100, "max_position_embeddings": 2048}
    folder = checkpoint("qwen2", dtype=stored, **shape)
    made = models.load_compiled(str(folder), precision=precision)
    yield made
    made.close()


def test_bits_do_not_depend_on_the_number_of_threads(model: CompiledModel) -> None:
    model.set_threads(1)
    alone = Steps(model).after(COMPANY)
    for threads in (2, 3, 7):
        model.set_threads(threads)
        for one, other in zip(alone, Steps(model).after(COMPANY), strict=True):
            np.testing.assert_array_equal(one, other)


def test_bits_of_a_sequence_are_the_same_alone_and_in_a_batch(model: CompiledModel) -> None:
    model.set_threads(2)
    together = Steps(model).after(COMPANY)
    for part, got in zip(COMPANY, together, strict=True):
        np.testing.assert_array_equal(Steps(model).after([part])[0], got)


def test_a_chunk_of_tokens_has_the_bits_of_as_many_steps(model: CompiledModel) -> None:
    model.set_threads(2)
    chunked, stepped = Steps(model), Steps(model)
    before = Part(0, 0, 230)
    chunked.run([before])
    stepped.run([before])
    (whole,) = chunked.run([Part(0, 230, 64)])
    for i, row in enumerate(whole):
        np.testing.assert_array_equal(stepped.run([Part(0, 230 + i, 1)])[0][0], row)


def test_bits_do_not_depend_on_the_blocks_that_are_taken_together(checkpoint: Make) -> None:
    """480 outputs are no whole blocks; how many of them a thread takes depends on rows and threads."""
    folder = checkpoint("llama", hidden_size=480, num_attention_heads=4, num_key_value_heads=2)
    model = models.load_compiled(str(folder), precision=Stored())
    model.set_threads(1)
    alone = [Steps(model).after([part])[0] for part in COMPANY]
    for threads in (1, 2, 3, 7):
        model.set_threads(threads)
        for one, other in zip(alone, Steps(model).after(COMPANY), strict=True):
            np.testing.assert_array_equal(one, other)
    model.close()


# -- keys that sequences share

SOURCES = [Part(0, 0, 1100), Part(1, 0, 740)]
FORKS = {2: (0, 16), 3: (1, 10), 4: (0, 16), 5: (1, 10), 6: (0, 9), 7: (0, 15)}
"""Of a sequence: whose blocks it begins with, and how many."""
SHARING = [
    Part(2, 1054, 1),
    Part(1, 740, 40),
    Part(0, 1100, 1),
    Part(3, 645, 2, TREE),
    Part(8, 300, 1),
    Part(4, 1024, 130),
    Part(5, 640, 1),
    Part(6, 600, 1, DEEP),
    Part(7, 965, 1, TREE),
]
"""Two groups, interleaved: chunks of prompts, decodes, drafts, one that shares nothing."""


def begun(model: CompiledModel) -> Steps:
    """All that lies before SHARING."""
    steps = Steps(model)
    steps.run(SOURCES)
    for seq, (source, num_blocks) in FORKS.items():
        steps.fork(seq, source, num_blocks)
    ours = [Part(s, n * PAGE, -1) for s, (_, n) in FORKS.items()] + [Part(8, 0, -1)]
    until = {part.seq: part.start for part in SHARING}
    before = [Part(p.seq, p.start, until[p.seq] - p.start) for p in ours]
    steps.run([part for part in before if part.count])
    return steps


def tiles_of_groups(model: CompiledModel) -> list[tuple[int, int]]:
    """(rows, chunks of keys) of the tiles of the last step that its groups had."""
    plan = model._state.arrays["plan"]
    return [(int(t[NUM_ROWS]), int(t[NUM_CHUNKS])) for t in plan[1 : 1 + plan[0, 0]]]


def check_sharing(model: CompiledModel) -> None:
    steps = begun(model)
    model.set_threads(1)
    alone = [steps.run([part])[0] for part in SHARING]
    assert tiles_of_groups(model) == []
    for threads in (1, 2, 3, 7):
        model.set_threads(threads)
        for parts in (SHARING, SHARING[::-1]):
            together = steps.run(parts)
            assert tiles_of_groups(model)
            for part, got in zip(parts, together, strict=True):
                np.testing.assert_array_equal(alone[SHARING.index(part)], got)


def test_bits_do_not_depend_on_keys_that_are_read_once(model: CompiledModel) -> None:
    check_sharing(model)


@pytest.mark.parametrize("kv", KEEP)
@pytest.mark.parametrize(
    ("size", "heads", "window"),
    [(64, (4, 4), 700), (80, (8, 1), 300), (24, (4, 2), 1000), (64, (16, 1), None)],
)
def test_bits_of_shared_keys_with_heads_and_windows(
    checkpoint: Make, size: int, heads: tuple[int, int], window: int | None, kv: int
) -> None:
    model = models.load_compiled(str(shaped(checkpoint, size, heads, window)), precision=KeptAs(kv=kv))
    check_sharing(model)
    model.close()


def test_groups_save_the_most(checkpoint: Make) -> None:
    """Four with two chunks, three of which share four: one more member would cost them two chunks each."""
    model = models.load_compiled(str(shaped(checkpoint, 8, (4, 4), None)), precision=KeptAs())
    steps = Steps(model)
    steps.run([Part(0, 0, 1030)])
    for seq, num_blocks in ((1, 16), (2, 9), (3, 16)):
        steps.fork(seq, 0, num_blocks)
    steps.run([Part(1, 1024, 1), Part(2, 576, 1), Part(0, 1030, 1), Part(3, 1024, 1)])
    assert tiles_of_groups(model) == [(3, 4)]
    steps.run([Part(2, 577, 1), Part(3, 1025, 1)])
    assert tiles_of_groups(model) == [(2, 2)]
    steps.run([Part(2, 400, 1), Part(0, 1031, 1)])  # its own row is in the second chunk
    assert tiles_of_groups(model) == [(2, 1)]
    model.close()
