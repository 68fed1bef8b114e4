"""Pairs of texts are learnt, outputs distilled and masks filled by the models that serve, and transformers
reads what is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lightwork import models
from lightwork.decode.sampling import Sampling
from lightwork.memory.kv import KVCache
from lightwork.models.block_filler import MASK, BlockFiller
from lightwork.models.encoder_decoder import EncoderDecoder
from lightwork.models.seq2seq import Seq2Seq, scores
from lightwork.runtime.kernel import Kernel
from lightwork.serve.engine import Engine
from lightwork.serve.local_runner import LocalRunner
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import Limits, Request
from lightwork.serve.simulate import run_load
from lightwork.train.block_drafter import Blocks, fill, greedy_outputs, train_block_drafter
from lightwork.train.pretrain import Settings
from lightwork.train.seq2seq import (
    Pairs,
    initial_seq2seq,
    mbart_spec,
    predict,
    read_and_write,
    save_seq2seq,
    train_seq2seq,
)
from lightwork.train.vocabulary import BOS, END, build_tokenizer

WORDS = build_tokenizer([MASK], [])
START, STOP, HIDDEN = (WORDS.get_vocab()[token] for token in (BOS, END, MASK))
BLOCKS = Blocks(k=4, start=START, end=STOP, mask=HIDDEN)
SPEC = mbart_spec(
    vocab_size=WORDS.get_vocab_size(),
    hidden_size=32,
    num_layers=1,
    encoder_layers=1,
    num_heads=2,
    num_kv_heads=2,
    head_size=16,
    ffn_size=32,
    max_len=48,
)
FEW = Settings(steps=60, learning_rate=5e-3, warmup_steps=5)


def pairs(seed: int, num: int = 8) -> Pairs:
    """Ten letters to be copied, but for one that is to be replaced by another."""
    rng = np.random.default_rng(seed)
    sources = [[*rng.integers(20, 40, rng.integers(5, 11)).tolist(), STOP] for _ in range(num)]
    return Pairs.of([(source, [21 if t == 20 else t for t in source]) for source in sources], STOP)


def batches() -> Iterator[Pairs]:
    seed = 0
    while True:
        seed += 1
        yield pairs(seed)


@pytest.fixture(scope="module")
def trained() -> Seq2Seq:
    weights = initial_seq2seq(SPEC, 0)
    losses = [p.loss for p in train_seq2seq(weights, SPEC, batches(), FEW, start=START)]
    assert losses[-1] < 0.6 * losses[0]
    return weights


def model_of(weights: Seq2Seq, folder: Path) -> EncoderDecoder:
    save_seq2seq(folder, weights, SPEC, WORDS)
    return models.load_seq2seq(str(folder))


def test_transformers_reads_what_was_trained(trained: Seq2Seq, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.set_verbosity_error()
    save_seq2seq(tmp_path, trained, SPEC, WORDS)
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    one = pairs(99, num=1)
    inputs = torch.cat((torch.tensor([[START]]), one.tokens_BT[:, :-1]), 1)
    with torch.no_grad():
        ours, _ = predict(trained, SPEC, one, START)
        mask = torch.ones_like(one.sources_BS)
        wanted = theirs(one.sources_BS, attention_mask=mask, decoder_input_ids=inputs).logits[0]
    torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-4)


def test_texts_beside_a_pair_and_what_fills_it_up_do_not_matter(trained: Seq2Seq) -> None:
    many = pairs(5)
    with torch.no_grad():
        logits, tokens = predict(trained, SPEC, many, START)
        n, m = int(many.lengths_B[0]), int(many.source_lengths_B[0])
        alone = Pairs.of([(many.sources_BS[0, :m].tolist(), many.tokens_BT[0, :n].tolist())], STOP)
        wanted, own = predict(trained, SPEC, alone, START)
    torch.testing.assert_close(logits[:n], wanted)
    assert tokens[:n].tolist() == own.tolist()


@pytest.mark.parametrize("seed", [0, 1])
def test_distilled_outputs_are_those_that_the_engine_serves(tmp_path: Path, seed: int) -> None:
    """Of a model hardly trained, so that outputs are none of the guesses."""
    weights = initial_seq2seq(SPEC, seed)
    stop = replace(FEW, stop=6)
    assert len([*train_seq2seq(weights, SPEC, batches(), stop, start=START)]) == 6
    asked = pairs(7)
    found = greedy_outputs(weights, SPEC, asked, BLOCKS)
    model, width = model_of(weights, tmp_path), asked.tokens_BT.shape[1]
    kernel, kv = Kernel(), KVCache(80, 4, prefix_cache=False)
    engine = Engine(kernel, LocalRunner(kernel, model, kv), kv, Sarathi(), limits=Limits(max_len=48))
    requests = []
    for source_S, n in zip(asked.sources_BS, asked.source_lengths_B, strict=True):
        source = source_S[: int(n)].tolist()
        how = Sampling(temperature=0.0)
        requests.append(
            Request(
                prompt=model.prompt(source),
                encoded=len(source),
                max_tokens=width,
                sampling=how,
                stop_ids=frozenset([STOP]),
            )
        )
    served = [seq.tokens[seq.prompt_len :] for seq in run_load(engine, [0.0] * 8, requests)]
    ours = [row[: int(n)].tolist() for row, n in zip(found.tokens_BT, found.lengths_B, strict=True)]
    assert ours == served
    assert not torch.equal(found.tokens_BT, asked.tokens_BT)


def test_masks_stand_where_a_block_is_and_shown_ones_are_not_judged(trained: Seq2Seq) -> None:
    asked, rng = pairs(3), torch.Generator().manual_seed(0)
    blind, all_shown = replace(BLOCKS, glance=0.0), replace(BLOCKS, glance=1.0)
    logits, tokens = fill(trained, SPEC, asked, blind, rng)
    assert logits.shape == (8 * BLOCKS.k, SPEC.vocab_size)
    assert len(tokens) == 8 * BLOCKS.k
    untrained = initial_seq2seq(SPEC, 3)
    assert len(fill(untrained, SPEC, asked, all_shown, rng)[1]) < 8 * BLOCKS.k


def test_a_drafter_learns_to_fill_blocks_and_fills_them_alike_when_it_serves(
    trained: Seq2Seq, tmp_path: Path
) -> None:
    weights = initial_seq2seq(SPEC, 0)
    outputs = (greedy_outputs(trained, SPEC, batch, BLOCKS) for batch in batches())
    losses = [p.loss for p in train_block_drafter(weights, SPEC, outputs, FEW, BLOCKS)]
    assert losses[-1] < 0.6 * losses[0]
    filler, asked = BlockFiller(model_of(weights, tmp_path)), pairs(11, num=3)
    known = [[START, *row[:i].tolist()] for i, row in enumerate(asked.tokens_BT)]
    texts = zip(asked.sources_BS, asked.source_lengths_B, strict=True)
    sources = [row[: int(n)].tolist() for row, n in texts]
    served = filler.fill([filler.read(source) for source in sources], known, [4, 4, 2])
    for source, tokens, masks, block in zip(sources, known, (4, 4, 2), served, strict=True):
        inputs = torch.tensor([[*tokens, *[HIDDEN] * masks]])
        one = Pairs.of([(source, source)], STOP)
        with torch.no_grad():
            seen = torch.ones(1, 1, inputs.shape[1], dtype=torch.bool)
            filled = scores(weights, read_and_write(weights, SPEC, one, inputs, seen)).argmax(-1)
        assert block == filled[0, -masks:].tolist()
