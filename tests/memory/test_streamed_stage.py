"""Ranks that read their share of every layer from disk: the model's numbers, within their memory, in messages
that can be counted. All ranks are strategies of one simulated world here, and compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from numpy.typing import NDArray

from lightwork import models
from lightwork.errors import CheckpointError
from lightwork.kernels.rows import Rows
from lightwork.memory.residencies import Residency
from lightwork.memory.residencies.sliding import Sliding
from lightwork.memory.residencies.window import Window
from lightwork.memory.streamed import passes
from lightwork.memory.streamed_stage import StreamedStage, open_streamed_stage
from lightwork.models.slices import slices
from lightwork.models.spec import read_spec
from lightwork.models.split import Split
from lightwork.parallel.all_reduces import AllReduce
from lightwork.parallel.all_reduces.direct import Direct
from lightwork.parallel.all_reduces.ring import Ring
from lightwork.parallel.all_reduces.star import Star
from lightwork.parallel.by_price import ByPrice
from lightwork.runtime import Effect, Fifo, Kernel, Move, Price, Send, SimWorld, Trace
from lightwork.testing import FAMILIES, text_logits

Make = Callable[..., Path]
TEXT = np.random.default_rng(0).integers(0, 320, 40).tolist()
DEEP = {"num_hidden_layers": 16, "hidden_size": 64, "intermediate_size": 192}
HOP_S = 0.005


class Ranks:
    """A model cut over simulated ranks. Moves are made when they begin, and take copy_s seconds."""

    def __init__(
        self,
        folder: Path,
        num: int,
        policy: Residency[Any],
        way: AllReduce | None = None,
        *,
        copy_s: float = 0.0,
        compute_s: float = 0.0,
    ) -> None:
        (row,) = slices(models.read_shape(str(folder)), 1, num, master=True)
        self.stages = [open_streamed_stage(folder, mine, policy, way or Star(), dict) for mine in row]
        self.trace = Trace("simulated")
        self.kernel = Kernel(trace=self.trace)
        self._copy_s, self._compute_s = copy_s, compute_s
        disks = {f"disk:{rank}": Fifo(f"disk:{rank}") for rank in range(num)}
        self._world = SimWorld(self.kernel, self._price, disks, execute=True)

    def _price(self, effect: Effect, rank: int) -> Price:
        if isinstance(effect, Move):
            self.stages[rank].fetch(effect)
            return Price((((f"disk:{rank}",), self._copy_s),))
        if isinstance(effect, Send):
            return Price((), HOP_S)
        return Price((), self._compute_s)

    def passes(self, given: Sequence[Rows]) -> list[list[NDArray[np.float32]]]:
        """What each rank gives for each of these passes over a text, which follow one another."""

        def launch(stage: StreamedStage) -> None:
            kv = stage.new_kv(1, len(TEXT))
            told = [rows if stage.mine.rank == 0 else replace(rows, tokens=rows.tokens[:0]) for rows in given]
            one = partial(_logits, stage, kv)
            self._world.launch(stage.mine.rank, passes(stage.stream, stage.copy, one, told))

        for stage in self.stages:
            launch(stage)
        with torch.inference_mode():
            return self._world.run()


async def _logits(stage: StreamedStage, kv: Any, rows: Rows) -> NDArray[np.float32]:
    return (await stage.strategy(rows, kv)).numpy()


def text() -> Rows:
    return Rows.of_text(np.array(TEXT, np.int64), len(TEXT))


def token(at: int) -> Rows:
    """The row of one token of the text, whose keys so far are there."""
    rows, one = text(), slice(at, at + 1)
    names = ("tokens", "positions", "slots", "seqs", "index", "ancestors")
    cut = {name: getattr(rows, name)[one] for name in names}
    return replace(rows, known=np.array([at + 1]), scored=np.array([0]), **cut)


def close(found: NDArray[np.float32], whole: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(found, whole, atol=1e-5 * np.abs(whole).max(), rtol=0)


@pytest.mark.parametrize("num", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_every_family_are_those_of_the_whole(checkpoint: Make, family: str, num: int) -> None:
    """And all of them are the first rank's."""
    folder = checkpoint(family)
    whole = text_logits(models.load(str(folder)), TEXT)
    for policy in (Sliding(), Window(k=2)):
        master, *others = Ranks(folder, num, policy).passes([text(), token(len(TEXT) - 1)])
        close(master[0], whole)
        close(master[1], whole[-1:])
        assert all([part.shape for part in parts] == [(len(TEXT), 0), (1, 0)] for parts in others)


@pytest.mark.parametrize("way", [Star(), Ring(), Direct(), ByPrice()], ids=repr)
def test_every_way_to_sum_gives_the_logits_of_the_whole(checkpoint: Make, way: AllReduce) -> None:
    folder = checkpoint("llama", num_key_value_heads=4)
    whole = text_logits(models.load(str(folder)), TEXT)
    close(Ranks(folder, 4, Sliding(), way).passes([text()])[0][0], whole)


@pytest.mark.parametrize(
    "config", [{"attention_bias": True, "mlp_bias": True}, {"tie_word_embeddings": True}], ids="-".join
)
def test_biases_are_added_once_and_a_tied_head_is_the_embedding(
    checkpoint: Make, config: dict[str, bool]
) -> None:
    folder = checkpoint("llama", **config)
    close(Ranks(folder, 2, Sliding()).passes([text()])[0][0], text_logits(models.load(str(folder)), TEXT))


@pytest.mark.parametrize("window", [2, 3, 4])
def test_each_rank_stays_within_its_memory_and_reads_its_share_once_a_pass(
    checkpoint: Make, window: int
) -> None:
    ranks = Ranks(checkpoint("llama", **DEEP), 2, Sliding(window=window))
    ranks.passes([text(), token(39), token(39)])
    for stage in ranks.stages:
        residents = stage.residents
        largest = max(residents.sizes.values())
        assert stage.resident_bytes == residents.cap_bytes == window * largest
        assert residents.nbytes <= residents.cap_bytes < stage.nbytes
        assert 3 * len(stage.items) <= residents.copies < 3 * len(stage.items) + window
        assert stage.file.read_bytes >= 3 * sum(residents.sizes.values())
    master, helper = ranks.stages
    layers = master.nbytes - helper.nbytes
    assert [*master.items][:-1] == [*helper.items]
    assert layers == 2 * 4096 * -(-320 * 64 * 4 // 4096) + 4096  # embedding; head, and the last norm


@pytest.mark.parametrize("num", [2, 4])
def test_a_token_takes_two_hops_a_sum_and_as_many_messages_as_there_are_helpers_each_way(
    checkpoint: Make, num: int
) -> None:
    """Each is one row of hidden states; the first, which all begin with, goes one way."""
    folder = checkpoint("llama", num_key_value_heads=4)
    spec, ranks = read_spec(folder), Ranks(folder, num, Sliding())
    ranks.passes([token(0)])
    sent = [(span.rank, span.peer, span.bytes) for span in ranks.trace.spans if span.kind == "send"]
    sums, row = 2 * spec.num_layers, 4 * spec.hidden_size
    for helper in map(str, range(1, num)):
        assert sent.count(("0", helper, row)) == sums + 1
        assert sent.count((helper, "0", row)) == sums
    assert len(sent) == (num - 1) * (2 * sums + 1)
    assert ranks.kernel.now() == pytest.approx((2 * sums + 1) * HOP_S)


@pytest.mark.parametrize("copy_s", [0.001, 0.1])
def test_a_token_takes_the_longer_of_the_disk_and_what_ranks_do(checkpoint: Make, copy_s: float) -> None:
    """Copies go on while ranks compute and wait for each other. The first rank need not wait until the last
    sum of a token has reached the other, who waits for the first row of the next one instead."""
    folder, num_tokens, compute_s = checkpoint("llama"), 12, 0.01
    ends = []
    for count in (2, num_tokens):
        ranks = Ranks(folder, 2, Sliding(), copy_s=copy_s, compute_s=compute_s)
        ranks.passes([token(0)] * count)
        ends.append(ranks.kernel.now())
    took_s = (ends[1] - ends[0]) / (num_tokens - 2)
    (*_, last), blocks = ranks.stages[0].items, len(ranks.stages[0].items)
    assert last == "head"
    sums = blocks - 1
    longer_s = max(blocks * copy_s, blocks * compute_s + sums * (2 * compute_s + 2 * HOP_S))
    assert 0.999 * longer_s <= took_s <= 1.15 * longer_s


def test_a_stage_by_itself_reads_with_a_thread_that_ends_with_it(checkpoint: Make) -> None:
    folder = checkpoint("llama")
    (stage,) = Ranks(folder, 1, Sliding()).stages
    whole = text_logits(models.load(str(folder)), TEXT)
    for _ in range(2):
        close(stage.forward(text(), stage.new_kv(1, len(TEXT))).numpy(), whole)
        stage.close()


def test_the_file_of_a_slice_is_made_once_and_anew_for_another_checkpoint(
    checkpoint: Make, tmp_path: Path
) -> None:
    for file in checkpoint("llama").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    ((master, other),) = slices(read_spec(tmp_path), 1, 2, master=True)
    made = [Split(read_spec(tmp_path), mine).file(tmp_path) for mine in (master, other)]
    before = [path.stat().st_mtime_ns for path in made]
    again = [Split(read_spec(tmp_path), mine).file(tmp_path) for mine in (master, other)]
    assert again == made
    assert [path.stat().st_mtime_ns for path in again] == before
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4000])
    with pytest.raises(CheckpointError, match="damaged"):
        Split(read_spec(tmp_path), master).file(tmp_path)


def test_without_a_place_for_its_file_a_rank_does_not_start(
    checkpoint: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIGHTWORK_HOME", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match="must be kept") as error:
        Ranks(checkpoint("llama"), 2, Sliding())
    assert "LIGHTWORK_HOME" in error.value.fix
