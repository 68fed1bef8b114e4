"""Texts of one engine: in turn, short ones together, and only while somebody wants them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from engines import make_engine

from lightwork.errors import UsageError
from lightwork.kernels.rows import Rows
from lightwork.models.pooling import Pooling
from lightwork.runtime.futures import CancelledError, Task
from lightwork.runtime.kernel import Kernel
from lightwork.serve.embedding import AT_ONCE, Embedding, Passes, Text, Vector
from lightwork.serve.notes import Notes

MEAN = Pooling(modes=("mean",))


class Lengths:
    """A vector is how long its text is; a second for each pass. A text of token 13 cannot be embedded."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.passes: list[list[int]] = []
        self.ended = 0

    async def embed(self, texts: Sequence[Text]) -> Sequence[Vector]:
        assert len({(text.model, text.pooling) for text in texts}) == 1
        self.passes.append([len(text.tokens) for text in texts])
        await self._kernel.sleep(1.0)
        if any(13 in text.tokens for text in texts):
            raise ValueError("thirteen")
        self.ended += 1
        return [np.array([len(text.tokens)], np.float32) for text in texts]


def made() -> tuple[Kernel, Lengths, Embedding]:
    kernel = Kernel()
    runner = Lengths(kernel)
    return kernel, runner, Embedding(kernel, runner, Notes(kernel, "engine"))


def asked(kernel: Kernel, embedding: Embedding, texts: Sequence[Text]) -> list[Task]:
    return [kernel.spawn(embedding.embed(text)) for text in texts]


def test_short_texts_of_one_model_are_computed_together_in_their_order() -> None:
    kernel, runner, embedding = made()
    sizes = [200, 300, 13, 2 * AT_ONCE, 4, 5]
    texts = [Text([0] * n) for n in sizes] + [Text([0, 0], "other"), Text([0], "other", MEAN), Text([0])]
    kernel.run(kernel.gather(*asked(kernel, embedding, texts)))
    assert runner.passes == [[200, 300], [13], [2 * AT_ONCE], [4, 5], [2], [1], [1]]
    assert kernel.now() == 7.0


def test_an_error_is_told_to_those_whose_pass_it_was() -> None:
    kernel, _, embedding = made()
    tasks = asked(kernel, embedding, [Text([13]), Text([1, 2]), Text([1], "other")])

    async def told() -> list[object]:
        said: list[object] = []
        for task in tasks:
            try:
                said += (await task).tolist()
            except ValueError as error:
                said.append(str(error))
        return said

    assert kernel.run(told()) == ["thirteen", "thirteen", 1.0]
    assert kernel.run(embedding.embed(Text([1, 2, 3]))) == 3


def test_what_nobody_wants_is_not_begun_and_not_ended() -> None:
    kernel, runner, embedding = made()
    tasks = asked(kernel, embedding, [Text([0] * n) for n in (400, 500, 100, 200)])
    kernel.at(0.5, tasks[0].cancel)  # alone in its pass
    kernel.at(0.5, tasks[2].cancel)
    kernel.run(until_s=9.0)
    assert runner.passes == [[400], [500], [200]]
    assert runner.ended == 2
    assert [type(task.error) for task in tasks] == [CancelledError, type(None), CancelledError, type(None)]


def test_a_pass_ends_if_one_of_its_texts_is_still_wanted() -> None:
    kernel, runner, embedding = made()
    tasks = asked(kernel, embedding, [Text([0] * n) for n in (3, 4)])
    kernel.at(0.5, tasks[0].cancel)
    kernel.run(until_s=9.0)
    assert (runner.passes, runner.ended, tasks[1].value) == ([[3, 4]], 1, 4)


@pytest.mark.parametrize("pooling", [Pooling(), MEAN])
def test_rows_of_texts_are_those_of_each_behind_the_other(pooling: Pooling) -> None:
    texts = [Text([*range(n)], "mine", pooling) for n in (5, 1, 700, 8)]
    passes = Passes.of(texts, 4, 512)
    assert passes.num_blocks == 2 + 1 + 175 + 2
    assert [len(rows.tokens) for rows in passes.parts] == [512, 202]
    assert passes.counts == ([5, 1, 700, 8] if pooling.reads_all else [1] * 4)
    assert sum(len(rows.scored) for rows in passes.parts) == sum(passes.counts)
    assert set(passes.parts[1].models) == {"mine"}
    together = Rows.of_texts([np.array(text.tokens) for text in texts], 4)
    assert together.slots[:6].tolist() == [0, 1, 2, 3, 4, 8]
    for s, text in enumerate(texts):
        alone, mine = Rows.of_text(np.array(text.tokens), 4), together.seqs == s
        assert together.tokens[mine].tolist() == alone.tokens.tolist()
        assert together.index[mine].tolist() == alone.index.tolist()
        blocks = together.tables[s, : -(-len(text.tokens) // 4)]
        assert together.slots[mine].tolist() == [blocks[i // 4] * 4 + i % 4 for i in alone.index]


def test_a_simulated_engine_gives_no_vectors() -> None:
    engine = make_engine()
    with pytest.raises(UsageError, match="it is simulated"):
        engine.kernel.run(engine.embed(Text([1])))
