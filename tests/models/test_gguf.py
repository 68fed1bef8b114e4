"""GGUF files: the model of the folder they were written from, as transformers and llama.cpp read them."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file

from lightwork import models
from lightwork.errors import CheckpointError
from lightwork.models.checkpoint import open_checkpoint
from lightwork.models.gguf.blocks import FORMATS
from lightwork.models.gguf.container import Container
from lightwork.models.gguf.export import BY_NAME, write_container, write_gguf
from lightwork.models.gguf.vocabulary import HUGGING_FACE, WORDS
from lightwork.models.spec import read_spec
from lightwork.models.tokenizer import Tokenizer
from lightwork.testing import text_logits

Make = Callable[..., Path]
WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "head_dim": 64}
NARROW = {"intermediate_size": 64, "head_dim": 8}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"rope_parameters": LLAMA3, "attention_bias": True, "tie_word_embeddings": True}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 5_000.0, "factor": 2.0}}),
    ("mistral", {}),
    ("qwen2", {"use_sliding_window": False}),
    ("qwen3", {}),
    ("mixtral", {}),
    ("qwen3_moe", {"norm_topk_prob": True}),
]
TEXTS = [
    "",
    "say hello, I'LL go\n\n  12345 done!",
    " é 漢字 👩‍👩‍👧 x=1;\r\n\t",
    "<|user|>plan 7.<|end|>",
    "a  b   ",
]
TOKENS = np.random.default_rng(0).integers(0, 256, 40).tolist()


def named(x: object) -> str | None:
    return x if isinstance(x, str) else "-".join(x) or "plain" if isinstance(x, dict) else None


@pytest.mark.parametrize(("family", "config"), FAMILIES, ids=named)
def test_a_file_is_the_model_it_was_written_from(
    checkpoint: Make, tmp_path: Path, family: str, config: dict[str, Any]
) -> None:
    folder, file = checkpoint(family, **config), tmp_path / "model.gguf"
    write_gguf(folder, file, "f32")
    ours, theirs = models.load(f"gguf:{file}"), models.load(str(folder))
    for a, b in zip(ours.weights.tensors(), theirs.weights.tensors(), strict=True):
        assert torch.equal(a, b)
    np.testing.assert_allclose(text_logits(ours, TOKENS), text_logits(theirs, TOKENS), atol=1e-5)
    assert ours.spec.tied == theirs.spec.tied
    assert ours.spec.max_len == theirs.spec.max_len


@pytest.mark.parametrize("type", ["f16", "bf16"])
def test_half_precision_is_read_as_it_is(checkpoint: Make, tmp_path: Path, type: Any) -> None:
    write_gguf(checkpoint("llama"), tmp_path / "m.gguf", type)
    source, name = open_checkpoint(tmp_path / "m.gguf"), "model.layers.0.mlp.up_proj.weight"
    assert source.codes(name, (48, 32)) is None
    stored = source.get(name, (48, 32))
    folder = open_checkpoint(checkpoint("llama"))
    assert (source.stored(), folder.stored()) == ({"f16": "float16", "bf16": "bfloat16"}[type], "float32")
    right = folder.get(name, (48, 32))
    assert stored.dtype == {"f16": torch.float16, "bf16": torch.bfloat16}[type]
    assert torch.equal(stored, right.to(stored.dtype))


def transformers_logits(folder: Path, **settings: Any) -> np.ndarray:
    transformers = pytest.importorskip("transformers")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        peer = transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32, **settings
        )
        logits: np.ndarray = peer.eval()(torch.tensor([TOKENS])).logits[0].numpy()
    return logits


def round_trip(folder: Path, to: Path, type: str) -> None:
    """A copy of a folder whose matrices went through a type's blocks, as the gguf package reads those."""
    gguf = pytest.importorskip("gguf")
    shutil.copytree(folder, to)
    number, format = BY_NAME[type.upper()]
    state = load_file(folder / "model.safetensors")
    for name, tensor in state.items():
        if tensor.ndim == 2 and type == "f16":
            state[name] = tensor.half().float()
        elif tensor.ndim == 2:
            assert format.encode is not None
            blocks = format.encode(tensor.numpy().reshape(len(tensor), -1, format.block))
            kind = gguf.GGMLQuantizationType(number)
            state[name] = torch.from_numpy(gguf.quants.dequantize(blocks.reshape(len(tensor), -1), kind))
    save_file(state, to / "model.safetensors", {"format": "pt"})


@pytest.mark.peer
@pytest.mark.parametrize("type", ["f16", "q8_0", "q4_0", "q4_k"])
@pytest.mark.parametrize(("family", "config"), [FAMILIES[0], FAMILIES[4], FAMILIES[5]], ids=named)
def test_logits_equal_transformers(
    checkpoint: Make, tmp_path: Path, family: str, config: dict[str, Any], type: Any
) -> None:
    size = WIDE if type == "q4_k" else NARROW
    folder = checkpoint(family, **config, **size)
    write_gguf(folder, tmp_path / "m.gguf", type)
    round_trip(folder, tmp_path / "rounded", type)
    expected = transformers_logits(tmp_path / "rounded")
    got = text_logits(models.load(str(tmp_path / "m.gguf")), TOKENS)
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.peer
@pytest.mark.parametrize(("family", "config"), [FAMILIES[0], FAMILIES[4]], ids=named)
def test_transformers_reads_the_files(
    checkpoint: Make, tmp_path: Path, family: str, config: dict[str, Any]
) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    file = tmp_path / "m.gguf"
    write_gguf(checkpoint(family, **config, **NARROW), file, "q8_0")
    expected = transformers_logits(tmp_path, gguf_file=file.name)
    got = text_logits(models.load(str(file)), TOKENS)
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.peer
@pytest.mark.parametrize("type", ["f32", "q8_0"])
def test_llama_cpp_gives_our_greedy_tokens(tmp_path: Path, type: Any) -> None:
    """On the built-in model. Keys and values of llama.cpp in float32; its q8_0 also rounds activations."""
    llama_cpp = pytest.importorskip("llama_cpp")
    file = tmp_path / "m.gguf"
    write_gguf(models.resolve("tiny:llama"), file, type)
    model = models.load(str(file))
    peer = llama_cpp.Llama(
        str(file), n_ctx=256, logits_all=True, verbose=False, type_k=0, type_v=0, n_threads=1
    )
    for words in ("say hello", "plan: red, then blue", "1 2 3"):
        tokens = model.tokenizer.chat([{"role": "user", "content": words}])
        start = len(tokens)
        peer.reset()
        peer.eval(tokens)
        while len(tokens) < start + 24:
            ours, theirs = text_logits(model, tokens)[-1], peer.scores[peer.n_tokens - 1]
            np.testing.assert_allclose(ours, theirs, atol=1e-4 if type == "f32" else 0.5)
            token = int(theirs.argmax())
            if type == "f32":
                assert int(ours.argmax()) == token
            tokens.append(token)
            peer.eval([token])


def random_blocks(name: str) -> np.ndarray:
    """Blocks of random bytes with scales that are numbers, uint8 [5, 3, block_bytes]."""
    format = BY_NAME[name][1]
    random = np.random.default_rng(1)
    blocks = random.integers(0, 256, (5, 3, format.block_bytes), np.uint8)
    at = {"Q8_0": [0], "Q4_0": [0], "Q4_K": [0, 2], "Q6_K": [208]}[name]
    for start in at:
        scale = random.normal(size=(5, 3, 1)).astype("<f2")
        blocks[..., start : start + 2] = scale.view(np.uint8).reshape(5, 3, 2)
    return blocks


@pytest.mark.peer
@pytest.mark.parametrize("number", [8, 2, 12, 14], ids=lambda n: FORMATS[n].name)
def test_blocks_are_decoded_as_gguf_decodes_them(number: int) -> None:
    gguf = pytest.importorskip("gguf")
    format, blocks = FORMATS[number], random_blocks(FORMATS[number].name)
    assert format.decode is not None
    codes = format.decode(blocks)
    expected = gguf.quants.dequantize(blocks.reshape(5, -1), gguf.GGMLQuantizationType(number))
    # Codes of Q6_K are around 128, which takes more bits than float32 has beside two scales.
    np.testing.assert_allclose(codes.dequantised(), expected, rtol=0, atol=1e-3 if number == 14 else 0)
    assert codes.codes.max() < 2**codes.bits
    assert codes.scales.shape == codes.offsets.shape == (5, codes.shape[1] // codes.group)


@pytest.mark.peer
@pytest.mark.parametrize("number", [8, 2], ids=lambda n: FORMATS[n].name)
def test_blocks_are_encoded_as_gguf_encodes_them(number: int) -> None:
    gguf = pytest.importorskip("gguf")
    x = np.random.default_rng(2).normal(size=(6, 96)).astype(np.float32)
    x[1, :32] = 0.0
    encode = FORMATS[number].encode
    assert encode is not None
    expected = gguf.quants.quantize(x, gguf.GGMLQuantizationType(number))
    assert np.array_equal(encode(x.reshape(6, 3, 32)).reshape(6, -1), expected)


def test_q4_k_keeps_each_value_within_its_step() -> None:
    format = BY_NAME["Q4_K"][1]
    x = np.random.default_rng(3).normal(size=(4, 2, 256)).astype(np.float32)
    x[0, 0, :64] = 0.0
    x[1, 0, 32:64] += 5.0
    assert format.encode is not None
    assert format.decode is not None
    codes = format.decode(format.encode(x))
    error = np.abs(codes.dequantised().reshape(4, 16, 32) - x.reshape(4, 16, 32)).max(-1)
    span = x.reshape(4, 16, 32).max(-1) - np.minimum(x.reshape(4, 16, 32).min(-1), 0)
    coarse = np.repeat(span.reshape(4, 2, 8).max(-1) / 63, 8, axis=1)
    assert (error <= span / 15 * 0.6 + coarse).all()


def test_names_and_places(checkpoint: Make, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(checkpoint("llama"), file, "f16")
    seen: list[tuple[int, int]] = []
    model = models.load(str(file), progress=lambda _, done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert 0 < seen[0][0] < seen[-1][0] == seen[-1][1]
    assert models.read_shape(f"gguf:{file}") == read_spec(file) == model.spec
    assert model.spec.family == "llama"
    assert open_checkpoint(file).files == [file]
    assert [f.name for f in open_checkpoint(checkpoint("llama")).files] == ["model.safetensors"]
    with pytest.raises(CheckpointError, match="no file"):
        models.load("gguf:missing.gguf")
    with pytest.raises(CheckpointError, match=r"no tensor blk\.0\.attn_q\.bias"):
        open_checkpoint(file).get("model.layers.0.self_attn.q_proj.bias", (32,))


@pytest.mark.parametrize(
    ("family", "type", "message"),
    [("gpt2", "f32", "cannot be written"), ("llama", "q4_k", "has rows of"), ("qwen2", "f32", "be written")],
)
def test_what_cannot_be_written_is_refused(
    checkpoint: Make, tmp_path: Path, family: str, type: Any, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        write_gguf(checkpoint(family), tmp_path / "m.gguf", type)
    assert caught.value.expected
    assert caught.value.fix


# -- text


def with_rule(file: Path, rule: str) -> Path:
    """The tokenizer of a file without its tokenizer.json, and with another rule by which words are cut."""
    metadata = dict(Container(file).metadata)
    del metadata[HUGGING_FACE]
    new = file.with_suffix(f".{rule}.gguf")
    write_container(new, metadata | {"tokenizer.ggml.pre": rule}, {})
    return new


@pytest.fixture(scope="module")
def built_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_gguf(models.resolve("tiny:llama"), file, "f16")
    return file


def test_the_tokenizer_comes_along(built_in: Path) -> None:
    ours, theirs = Tokenizer(built_in), Tokenizer(models.resolve("tiny:llama"))
    talk = [{"role": "user", "content": "say hello"}]
    for text in TEXTS:
        assert ours.encode(text, add_special=True) == theirs.encode(text, add_special=True)
        assert ours.decode(ours.encode(text)) == text
    assert ours.chat(talk) == theirs.chat(talk)
    assert (ours.eos_ids, ours.special, ours.vocab_size) == (
        theirs.eos_ids,
        theirs.special,
        theirs.vocab_size,
    )


@pytest.mark.parametrize("rule", [*WORDS, "gpt-2", "smollm"])
def test_byte_level_text_is_cut_by_the_rule_of_the_file(built_in: Path, rule: str) -> None:
    """As by a tokenizer.json of that rule in transformers' form."""
    folder = models.resolve("tiny:llama")
    whole = json.loads((folder / "tokenizer.json").read_text())
    steps: list[dict[str, Any]] = [
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": rule not in WORDS}
    ]
    if rule in WORDS:
        pattern = {"Regex": WORDS[rule]}
        steps.insert(0, {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False})
    if rule == "smollm":
        steps.insert(0, {"type": "Digits", "individual_digits": True})
    whole["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    whole["normalizer"] = {"type": "NFC"} if rule == "qwen2" else None
    whole["model"]["ignore_merges"] = rule == "llama-bpe"
    peer = tokenizers.Tokenizer.from_str(json.dumps(whole))
    ours = Tokenizer(with_rule(built_in, rule))
    for text in TEXTS:
        assert ours.encode(text) == peer.encode(text, add_special_tokens=False).ids
        assert ours.decode(ours.encode(text)) == text


def sentencepiece(file: Path, **changes: Any) -> Path:
    """A file with a tokenizer of the "llama" kind, and no model to speak of."""
    pieces = {"▁h": -1.0, "el": -2.0, "lo": -3.0, "ello": -4.0, "▁hello": -5.0, "▁▁": -0.5, "ll": -9.0}
    letters = "▁abcdefghijklmnopqrstuvwxyz"
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces, *letters]
    kinds = [2, 3, 3, *[6] * 256, *[1] * (len(pieces) + len(letters))]
    scores = [0.0] * 259 + list(pieces.values()) + [-100.0 - i for i in range(len(letters))]
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.array(scores, "<f4"),
        "tokenizer.ggml.token_type": np.array(kinds, "<i4"),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    write_container(file, metadata | changes, {})
    return file


def test_sentencepiece_text_is_joined_by_score_and_falls_back_to_bytes(tmp_path: Path) -> None:
    tokenizer = Tokenizer(sentencepiece(tmp_path / "m.gguf"))
    tokens = Container(tmp_path / "m.gguf").texts("tokenizer.ggml.tokens")

    def pieces(text: str) -> list[str]:
        return [tokens[i] for i in tokenizer.encode(text)]

    assert pieces("hello") == ["▁hello"]
    assert pieces("hell") == ["▁h", "el", "l"]
    assert pieces("  é") == ["▁▁", "▁", "<0xC3>", "<0xA9>"]
    assert pieces("</s>hello") == ["</s>", "▁hello"]
    assert tokenizer.encode("hello", add_special=True)[0] == 1
    assert tokenizer.eos_ids == {2}
    for text in ("hello  there", "é 漢", "\n\tx"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    plain = Tokenizer(sentencepiece(tmp_path / "n.gguf", **{"tokenizer.ggml.add_space_prefix": False}))
    assert [tokens[i] for i in plain.encode("hello")] == ["h", "ello"]


@pytest.mark.peer
def test_sentencepiece_text_is_cut_as_llama_cpp_cuts_it(tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    file = sentencepiece(tmp_path / "m.gguf")
    peer = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    tokenizer = Tokenizer(file)
    for text in ("hello", "hell hello", " hello  yellow", "é 漢", "lll eell"):
        assert tokenizer.encode(text) == peer.tokenize(text.encode(), add_bos=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.model": "bert"}, "kind 'bert'"),
        ({"tokenizer.ggml.scores": np.zeros(3, "<f4")}, r"scores is not \d+ numbers"),
        ({"tokenizer.ggml.bos_token_id": 99_999}, "bos_token_id"),
        ({"tokenizer.ggml.tokens": "none"}, "tokens is 'none'"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "viking"}, "'viking'"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2"}, "merges is missing"),
        (
            {
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.pre": "gpt-2",
                "tokenizer.ggml.merges": ["never seen"],
            },
            "cannot be built",
        ),
        ({HUGGING_FACE: "{}"}, "cannot be built"),
    ],
    ids=lambda x: None if isinstance(x, dict) else x,
)
def test_a_tokenizer_that_cannot_be_built_is_explained(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        Tokenizer(sentencepiece(tmp_path / "m.gguf", **changes))
    assert caught.value.expected
    assert caught.value.fix
