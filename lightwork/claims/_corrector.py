"""An encoder-decoder that corrects sentences, and a block drafter for it: trained once, and kept.

Two layers on either side, 770,000 parameters, six minutes of one core together. The drafter starts
from the corrector's weights and learns to fill masks with what the corrector puts out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer as Words

from lightwork.agents.worlds.corrections import WORDS, Corrections
from lightwork.claims._chats import one_thread
from lightwork.claims._random_llama import written_once
from lightwork.decode.proposers import Draft, Proposer, Target
from lightwork.decode.proposers.copy import Copy
from lightwork.decode.proposers.nat import Nat
from lightwork.decode.sampling import Sampling
from lightwork.decode.verifiers import PickAt, Verdict, Verifier
from lightwork.decode.verifiers.match import Match
from lightwork.memory.kv import KVCache
from lightwork.models import load_seq2seq
from lightwork.models.block_filler import MASK
from lightwork.models.encoder_decoder import EncoderDecoder
from lightwork.models.spec import ModelSpec
from lightwork.runtime.kernel import Kernel
from lightwork.serve.engine import Engine
from lightwork.serve.local_runner import LocalRunner
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import Limits, Request
from lightwork.serve.simulate import run_load
from lightwork.train.block_drafter import Blocks, greedy_outputs, train_block_drafter
from lightwork.train.pretrain import Settings
from lightwork.train.seq2seq import Pairs, initial_seq2seq, mbart_spec, predict, save_seq2seq, train_seq2seq
from lightwork.train.vocabulary import BOS, END, build_tokenizer

Sources = tuple[tuple[int, ...], ...]
SENTENCES = 500
BLOCK = 8
RATE = 0.06
"""Share of words with a mistake."""
BATCH = 32
SETTINGS = Settings(steps=600, learning_rate=3e-3, warmup_steps=50)
DRAFTER = Settings(steps=300, learning_rate=2e-3, warmup_steps=20)


@cache
def words() -> Words:
    return build_tokenizer([*WORDS, MASK], [])


def spec() -> ModelSpec:
    return mbart_spec(
        vocab_size=words().get_vocab_size(),
        hidden_size=128,
        num_layers=2,
        encoder_layers=2,
        num_heads=4,
        num_kv_heads=4,
        head_size=32,
        ffn_size=256,
        max_len=160,
    )


def blocks() -> Blocks:
    vocabulary = words().get_vocab()
    start, end, mask = (vocabulary[token] for token in (BOS, END, MASK))
    return Blocks(k=BLOCK, start=start, end=end, mask=mask)


def corrections(name: str, rate: float = RATE) -> Iterator[tuple[list[int], list[int]]]:
    """Tokens of sources and of targets, each ended; others for each name."""
    for one in Corrections(rng=Random(f"corrections {name}"), rate=rate):
        source, target = words().encode_batch([one.source, one.target])
        yield [*source.ids, blocks().end], [*target.ids, blocks().end]


def batches(name: str) -> Iterator[Pairs]:
    """Some sentences have no mistakes, some have many."""
    streams = [corrections(f"{name} {rate}", rate) for rate in (0.0, RATE, 2 * RATE)]
    shares = (BATCH // 8, BATCH // 2, BATCH - BATCH // 8 - BATCH // 2)
    while True:
        pairs = [pair for stream, n in zip(streams, shares, strict=True) for pair in islice(stream, n)]
        yield Pairs.of(pairs, blocks().end)


def corrector_folder() -> Path:
    """Where the corrector is; trained now if it is not there."""
    return written_once("corrector", _train_corrector)


def drafter_folder() -> Path:
    return written_once("block-drafter", _train_drafter)


@cache
def corrector() -> EncoderDecoder:
    return load_seq2seq(str(corrector_folder()))


def _train_corrector(part: Path) -> None:
    weights = initial_seq2seq(spec(), 0)
    with one_thread():
        for _ in train_seq2seq(weights, spec(), batches("train"), SETTINGS, start=blocks().start):
            pass
    save_seq2seq(part, weights, spec(), words())


def _train_drafter(part: Path) -> None:
    verifier = corrector().weights
    weights = deepcopy(verifier)
    for tensor in weights.tensors():
        tensor.requires_grad_(True)
    outputs = (greedy_outputs(verifier, spec(), pairs, blocks()) for pairs in batches("distil"))
    with one_thread():
        for _ in train_block_drafter(weights, spec(), outputs, DRAFTER, blocks()):
            pass
    save_seq2seq(part, weights, spec(), words())


@one_thread()
@torch.no_grad()
def accuracy(sources: Sources, targets: Sequence[Sequence[int]]) -> float:
    """The share of target tokens that the corrector says behind those before them."""
    pairs = Pairs.of([*zip(sources, targets, strict=True)], blocks().end)
    logits_NV, tokens_N = predict(corrector().weights, spec(), pairs, blocks().start)
    return float((logits_NV.argmax(-1) == tokens_N).float().mean())


@dataclass(frozen=True, slots=True)
class Corrected:
    """outputs: of each sentence. calls: passes of the corrector, for each sentence or those served at once.
    accepted: drafted tokens that were kept, of so many drafts.
    """

    outputs: list[list[int]]
    calls: list[int]
    accepted: int
    drafts: int


@cache
@one_thread()
def corrected(
    proposer: Proposer | None, sources: Sources, verifier: Verifier | None = None, at_once: int = 1
) -> Corrected:
    """So many sentences at once, where a pass takes the same time whatever its rows, as on a device that
    launches bind."""
    counting = Counting(verifier or Match())
    engine = _engine(proposer, counting)
    outputs, calls = [], []
    for i in range(0, len(sources), at_once):
        before, some = engine.steps, sources[i : i + at_once]
        seqs = run_load(engine, [0.0] * len(some), [_request(source) for source in some])
        outputs += [seq.tokens[seq.prompt_len :] for seq in seqs]
        calls.append(engine.steps - before)
    return Corrected(outputs, calls, counting.accepted, counting.drafts)


@dataclass(slots=True)
class Counting:
    """A verifier, and what it was asked and kept."""

    inner: Verifier
    drafts: int = 0
    accepted: int = 0

    def verify(self, draft: Draft, pick: PickAt) -> Verdict:
        verdict = self.inner.verify(draft, pick)
        self.drafts += 1
        self.accepted += len(verdict.path)
        return verdict


def _engine(proposer: Proposer | None, verifier: Verifier) -> Engine:
    kernel, kv = Kernel(), KVCache(400, 16, prefix_cache=False)
    target = Target(
        model=str(corrector_folder()), on="cpu", max_seqs=64, max_len=160, beside=ThreadPoolExecutor(1)
    )
    return Engine(
        kernel,
        LocalRunner(kernel, corrector(), kv),
        kv,
        Sarathi(chunk=4096),
        limits=Limits(max_len=spec().max_len),
        proposer=None if proposer is None else proposer.begin(target),
        verifier=verifier,
        predict=lambda step: 1.0,
    )


def _request(source: tuple[int, ...]) -> Request:
    return Request(
        prompt=corrector().prompt(source),
        encoded=len(source),
        max_tokens=spec().max_len - len(source) - 1,
        sampling=Sampling(temperature=0.0),
        stop_ids=frozenset([blocks().end]),
    )


@cache
def judged(seed: int, rate: float | None = None) -> tuple[Sources, list[list[int]]]:
    """Sentences that nobody was trained on, and how they are right. rate: of mistakes."""
    made = corrections(f"judged {seed} {rate}", RATE if rate is None else rate)
    sources, targets = zip(*islice(made, SENTENCES), strict=True)
    return tuple(map(tuple, sources)), [*targets]


def by_itself(sources: Sources) -> Corrected:
    """Greedy decoding, many sentences at once; of one, as many passes as the output has tokens."""
    return corrected(None, sources, at_once=50)


def copying(sources: Sources) -> Corrected:
    """IAD. Raises AssertionError if any output is another than the greedy one."""
    found = corrected(Copy(stop=-1), sources)
    assert found.outputs == by_itself(sources).outputs
    return found


def num_tokens(outputs: Sequence[Sequence[int]]) -> int:
    return sum(map(len, outputs))


def in_common(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens of the longest common subsequence."""
    best = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for i, y in enumerate(b, 1):
            before, best[i] = best[i], before + 1 if x == y else max(best[i], best[i - 1])
    return best[-1]


def nat() -> Nat:
    return Nat(model=str(drafter_folder()), k=BLOCK)


def in_blocks(sources: Sources) -> Corrected:
    """GAD. Raises AssertionError if any output is another than the greedy one."""
    found = corrected(nat(), sources)
    assert found.outputs == by_itself(sources).outputs
    return found
