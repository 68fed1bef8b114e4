"""An encoder-decoder says what transformers says, in steps of any shape, and refuses what it cannot do."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
import transformers

from lightwork import models
from lightwork.decode.proposers import Draft, Drafter
from lightwork.decode.proposers.copy import Copy
from lightwork.decode.sampling import Sampling
from lightwork.errors import CheckpointError, InvariantError, RangeError, SpecError, UsageError
from lightwork.kernels.rows import Rows
from lightwork.memory.kv import KVCache
from lightwork.models.encoder_decoder import EncoderDecoder
from lightwork.models.spec import ModelSpec
from lightwork.runtime.kernel import Kernel
from lightwork.serve.embedding import Text
from lightwork.serve.engine import Engine
from lightwork.serve.local_runner import LocalRunner
from lightwork.serve.rows import build_rows
from lightwork.serve.schedulers import Chunk, Step
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import Limits, Request
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulate import run_load
from lightwork.testing import write_tokenizer

TOLERANCE = 1e-4
START, END = 2, 3
SHAPE = {
    "vocab_size": 320,
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 128,
    "decoder_start_token_id": START,
    "eos_token_id": END,
    "pad_token_id": END,
    "bos_token_id": START,
    "forced_eos_token_id": None,
}
RNG = np.random.default_rng(0)
SOURCES = [RNG.integers(4, 320, n).tolist() for n in (1, 17, 40, 5)]


def written(folder: Path, **config: Any) -> Path:
    transformers.utils.logging.set_verbosity_error()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.MBartForConditionalGeneration(transformers.MBartConfig(**(SHAPE | config)))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
        torch.nn.init.normal_(model.final_logits_bias)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("mbart"))


@pytest.fixture(scope="module")
def model(folder: Path) -> EncoderDecoder:
    return models.load_seq2seq(str(folder))


def theirs(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, attn_implementation="eager").eval()


def step_of(kv: KVCache, texts: Sequence[tuple[list[int], int, int, int]], drafts: list[Draft]) -> Rows:
    """texts: (tokens, how many an encoder reads, start and count of the chunk)."""
    chunks = []
    for i, (tokens, encoded, start, count) in enumerate(texts):
        request = Request(prompt=tuple(tokens), max_tokens=8, encoded=encoded)
        seq = Seq(i, request, request.sampling, None, 0.0, tokens, encoded + 1)
        if not start:
            kv.attach(i, ())
        kv.reserve(i, start + count + 8)
        chunks.append(Chunk(seq, start, count))
    rows, _ = build_rows(Step(chunks=chunks, drafts=drafts), kv)
    rows.scored = np.flatnonzero(rows.index >= np.array(rows.encoded)[rows.seqs])
    return rows


@pytest.mark.parametrize("config", [{}, {"scale_embedding": True, "activation_function": "relu"}], ids=str)
def test_logits_are_those_of_transformers_however_outputs_are_cut(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    reference, model = theirs(written(tmp_path, **config)), models.load_seq2seq(str(tmp_path))
    outputs = [[START, *RNG.integers(4, 320, n).tolist()] for n in (6, 9, 3, 7)]
    kv = KVCache(160, 4, prefix_cache=False)
    pool = model.new_kv(160, 4)
    texts = [
        ([*source, *output], len(source), 0, len(source) + 2)
        for source, output in zip(SOURCES, outputs, strict=True)
    ]
    first = model.logits(step_of(kv, texts, []), pool).reshape(4, 2, -1)
    later = [(tokens, encoded, encoded + 2, len(tokens) - encoded - 2) for tokens, encoded, _, _ in texts]
    rest = model.logits(step_of(kv, later, []), pool)
    ends = np.cumsum([count for *_, count in later])
    for i, (source, output) in enumerate(zip(SOURCES, outputs, strict=True)):
        with torch.no_grad():
            wanted = reference(
                input_ids=torch.tensor([source]),
                attention_mask=torch.ones(1, len(source), dtype=torch.long),
                decoder_input_ids=torch.tensor([output]),
            ).logits[0]
        ours = np.concatenate([first[i], rest[ends[i] - later[i][3] : ends[i]]])
        np.testing.assert_allclose(ours, wanted.numpy(), atol=TOLERANCE, rtol=1e-4)


def test_rows_of_a_tree_see_their_ancestors_and_the_source(model: EncoderDecoder) -> None:
    """Each path through a draft has the scores that it has as a text of its own."""
    source, output = SOURCES[1], [START, 50, 60]
    tokens, encoded = [*source, *output], len(source)
    draft = Draft((7, 8, 9, 11), (-1, 0, -1, 2))
    kv, pool = KVCache(40, 4, prefix_cache=False), model.new_kv(40, 4)
    ours = model.logits(step_of(kv, [(tokens, encoded, 0, len(tokens))], [draft]), pool)
    for node, path in ((1, [7, 8]), (3, [9, 11])):
        kv, pool = KVCache(40, 4, prefix_cache=False), model.new_kv(40, 4)
        text = [*tokens, *path]
        alone = model.logits(step_of(kv, [(text, encoded, 0, len(text))], []), pool)
        np.testing.assert_allclose(ours[len(output) + node], alone[-1], atol=TOLERANCE)


def engine_of(model: EncoderDecoder, proposer: Drafter | None = None, blocks: int = 160) -> Engine:
    kernel, kv = Kernel(), KVCache(blocks, 4, prefix_cache=False)
    runner = LocalRunner(kernel, model, kv)
    return Engine(kernel, runner, kv, Sarathi(chunk=64), limits=Limits(max_len=128), proposer=proposer)


def served(engine: Engine, model: EncoderDecoder, **sampling: Any) -> list[list[int]]:
    how = Sampling(**({"temperature": 0.0} | sampling))
    requests = [
        Request(
            prompt=model.prompt(source),
            encoded=len(source),
            max_tokens=20,
            sampling=how,
            stop_ids=frozenset([END]),
        )
        for source in SOURCES * 3
    ]
    seqs = run_load(engine, [0.0] * len(requests), requests)
    engine.kv.check()
    return [seq.tokens[seq.prompt_len :] for seq in seqs]


def test_greedy_outputs_of_the_engine_are_those_of_transformers(folder: Path, model: EncoderDecoder) -> None:
    reference, ours = theirs(folder), served(engine_of(model), model)
    for source, output in zip(SOURCES * 3, ours, strict=True):
        wanted = reference.generate(
            torch.tensor([source]),
            attention_mask=torch.ones(1, len(source), dtype=torch.long),
            do_sample=False,
            num_beams=1,
            max_new_tokens=20,
        )
        assert output == wanted[0, 1:].tolist()


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "seed": 5}], ids=str)
def test_little_memory_and_drafts_change_nothing(model: EncoderDecoder, sampling: dict[str, Any]) -> None:
    plain = served(engine_of(model), model, **sampling)
    few = engine_of(model, blocks=24)
    assert served(few, model, **sampling) == plain
    assert served(engine_of(model, Copy(stop=-1)), model, **sampling) == plain
    assert served(engine_of(model, Copy(stop=-1), blocks=24), model, **sampling) == plain


def test_a_source_is_never_cut_and_never_shared(model: EncoderDecoder) -> None:
    kv, pool = KVCache(40, 4, prefix_cache=False), model.new_kv(40, 4)
    text = [*SOURCES[2], START]
    with pytest.raises(InvariantError, match="whole sources"):
        model.logits(step_of(kv, [(text, len(SOURCES[2]), 0, 12)], []), pool)
    with pytest.raises(InvariantError, match="no source"):
        model.logits(Rows.of_text(np.arange(4), 4), pool)
    with pytest.raises(SpecError, match="begin alike"):
        LocalRunner(Kernel(), model, KVCache(40, 4))


@pytest.mark.parametrize(
    ("settings", "what"),
    [({"encoded": 3}, "is to read"), ({"encoded": -1}, "is to read"), ({"prompt_logprobs": 0}, "encoder")],
    ids=str,
)
def test_impossible_requests_are_refused(model: EncoderDecoder, settings: dict[str, Any], what: str) -> None:
    request = Request(**({"prompt": (5, 6, START), "max_tokens": 4, "encoded": 2} | settings))
    with pytest.raises(RangeError, match=what):
        engine_of(model).submit(request)


def test_other_places_refuse_an_encoder(folder: Path, tmp_path: Path) -> None:
    for load in (models.load, models.load_seq2seq):
        name: Callable[..., Any] = load
        with pytest.raises(CheckpointError, match="encoder"):
            name(str(folder) if load is models.load else "tiny:llama")
    with pytest.raises(CheckpointError, match="other widths"):
        ModelSpec.from_config(
            SHAPE | {"architectures": ["MBartForConditionalGeneration"], "encoder_ffn_dim": 64}
        )


def test_it_gives_no_vectors_of_texts(model: EncoderDecoder) -> None:
    kernel, kv = Kernel(), KVCache(16, 4, prefix_cache=False)
    engine = Engine(kernel, LocalRunner(kernel, model, kv), kv, Sarathi(), limits=Limits(max_len=64))
    with pytest.raises(UsageError, match="no decoder"):
        kernel.run(engine.embed(Text(SOURCES[1])))
