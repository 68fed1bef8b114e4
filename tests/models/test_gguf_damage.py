"""Damaged and hostile GGUF files: each is explained, none crashes the process or takes its memory."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from lightwork import models
from lightwork.errors import CheckpointError
from lightwork.models.gguf.blocks import FORMATS
from lightwork.models.gguf.container import Container
from lightwork.models.gguf.export import BY_NAME, Entry, write_container, write_gguf
from lightwork.models.gguf.vocabulary import HUGGING_FACE

Make = Callable[..., Path]
Edit = Callable[[bytearray], Any]
MAX_BYTES = 32 << 20
CASES = 400


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, checkpoint: Make) -> Path:
    """A file whose tokenizer is built from its tokens."""
    file = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_gguf(checkpoint("llama", intermediate_size=64), file, "q8_0")
    return changed(file, {"tokenizer.ggml.pre": "gpt-2"}, without=(HUGGING_FACE,))


def changed(
    file: Path, metadata: dict[str, Any], *, without: tuple[str, ...] = (), only: int | None = None
) -> Path:
    """A copy with other metadata; only: with no more than so many tensors."""
    old = Container(file)
    values = {k: v for k, v in old.metadata.items() if k not in without} | metadata
    entries = {
        name: Entry(format=place.format, shape=place.shape, data=old.bytes_of(place).tobytes)
        for name, place in list(old.tensors.items())[:only]
    }
    new = file.with_suffix(".changed.gguf")
    write_container(new, values, entries)
    return new


def load(file: Path) -> None:
    """All of a file; the memory it takes is small, however large the file says it is."""
    tracemalloc.start()
    try:
        models.load(f"gguf:{file}")
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MAX_BYTES


def refusal(file: Path) -> CheckpointError | None:
    """What is said of a file, None if it can be read."""
    try:
        load(file)
    except CheckpointError as error:
        return error
    return None


def check(file: Path, message: str) -> None:
    error = refusal(file)
    assert error is not None
    assert re.search(message, str(error)), error
    assert error.expected
    assert error.fix


def put(at: int, value: int, size: int = 8) -> Edit:
    def edit(data: bytearray) -> None:
        data[at : at + size] = value.to_bytes(size, "little")

    return edit


def put_behind(text: str, value: int, size: int = 8, skip: int = 0) -> Edit:
    def edit(data: bytearray) -> None:
        put(data.index(text.encode()) + len(text) + skip, value, size)(data)

    return edit


HUGE = 1 << 62
TENSOR = "blk.0.attn_q.weight"
DAMAGE: dict[str, tuple[Edit, str]] = {
    "empty": (lambda d: d.clear(), "no whole GGUF file"),
    "magic only": (lambda d: d.__delitem__(slice(4, None)), "are not there"),
    "another magic": (put(0, 0, 4), "does not begin with GGUF"),
    "version 1": (put(4, 1, 4), "its version is 1"),
    "big-endian": (put(4, 3 << 24, 4), "its version is 50331648"),
    "many tensors": (put(8, HUGE), "are not there"),
    "many values": (put(16, HUGE), "are not there"),
    "long key": (put(24, HUGE), "are not there"),
    "long text": (put_behind("general.architecture", HUGE, skip=4), "are not there"),
    "no text": (put_behind("general.architecture", 0xFF, 1, skip=12), "not UTF-8"),
    "many tokens": (put_behind("tokenizer.ggml.tokens", HUGE, skip=8), "are not there"),
    "many numbers": (put_behind("tokenizer.ggml.token_type", HUGE, skip=8), "are not there"),
    "list of lists": (put_behind("tokenizer.ggml.tokens", 9, 4, skip=4), "a value of type 9"),
    "unknown type of value": (put_behind("general.architecture", 77, 4), "a value of type 77"),
    "no dimensions": (put_behind(TENSOR, 0, 4), "has 0 dimensions"),
    "many dimensions": (put_behind(TENSOR, 1 << 31, 4), "has 2147483648 dimensions"),
    "nothing long": (put_behind(TENSOR, 0, skip=4), r"has the shape \(32, 0\)"),
    "long row": (put_behind(TENSOR, 32 * HUGE >> 6, skip=4), "past the end"),
    "many rows": (put_behind(TENSOR, HUGE, skip=12), "past the end"),
    "part of a block": (put_behind(TENSOR, 33, skip=4), "no multiple of its blocks"),
    "fewer rows": (put_behind(TENSOR, 16, skip=12), r"has shape \(16, 32\)"),
    "unknown type of tensor": (put_behind(TENSOR, 77, 4, skip=20), "has the type 77"),
    "a type that is not read": (put_behind(TENSOR, 10, 4, skip=20), f"{TENSOR} of .* stored as Q2_K"),
    "far away": (put_behind(TENSOR, HUGE, skip=24), "past the end"),
    "out of line": (put_behind(TENSOR, 1, skip=24), "is odd"),
    "cut off": (lambda d: d.__delitem__(slice(-64, None)), "past the end"),
    "cut in half": (lambda d: d.__delitem__(slice(len(d) // 2, None)), "past the end"),
    "cut in the header": (lambda d: d.__delitem__(slice(500, None)), "are not there"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_explained(whole: Path, tmp_path: Path, name: str) -> None:
    edit, message = DAMAGE[name]
    data = bytearray(whole.read_bytes())
    edit(data)
    (tmp_path / "m.gguf").write_bytes(data)
    check(tmp_path / "m.gguf", message)


ABSURD: list[tuple[dict[str, Any], str]] = [
    ({"general.architecture": "mamba"}, "'mamba', which is not supported"),
    ({"general.architecture": 7}, "general.architecture is 7"),
    ({"general.alignment": 0}, "alignment is 0"),
    ({"general.alignment": 48}, "alignment is 48"),
    ({"split.count": 3}, "one part"),
    ({"llama.block_count": 1 << 31}, "block_count is 2147483648"),
    ({"llama.block_count": 4}, r"no tensor blk\.3"),
    ({"llama.block_count": 2}, r"no place for: blk\.2"),
    ({"llama.block_count": 3.0}, r"block_count is 3\.0"),
    ({"llama.block_count": True}, "block_count is True"),
    ({"llama.attention.head_count": 0}, "head_count is 0"),
    ({"llama.attention.head_count": 8}, "has shape"),
    ({"llama.attention.head_count": np.array([4, 4, 4], "<u4")}, "head_count is array"),
    ({"llama.attention.head_count_kv": 4}, "attn_k.weight has shape"),
    ({"llama.attention.key_length": 7}, "heads have 7 values"),
    ({"llama.rope.dimension_count": 4}, "dimension_count is 4"),
    ({"llama.rope.freq_base": float("nan")}, "freq_base is nan"),
    ({"llama.attention.layer_norm_rms_epsilon": -1.0}, r"epsilon is -1\.0"),
    ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, "'yarn' is not supported"),
    ({"llama.embedding_length": 64}, "has shape"),
    ({"llama.feed_forward_length": 1 << 30}, "has shape"),
    ({"llama.context_length": 0}, "context_length is 0"),
    ({"llama.expert_count": 1 << 30, "llama.expert_used_count": 2}, "no tensor blk.0.ffn_gate_exps"),
    ({"llama.expert_count": 2, "llama.expert_used_count": 3}, "3 of 2 experts"),
    ({"tokenizer.ggml.tokens": ["a"] * 321}, "321 tokens and 320 rows"),
    ({"tokenizer.ggml.token_type": np.zeros(3, "<i4")}, "token_type is not 320 numbers"),
    ({"tokenizer.ggml.eos_token_id": 320}, "eos_token_id of .* is 320"),
    ({"tokenizer.ggml.merges": ["a b c"]}, "the merge 'a b c'"),
]


@pytest.mark.parametrize(("metadata", "message"), ABSURD, ids=lambda x: x if isinstance(x, str) else None)
def test_absurd_metadata_is_explained(whole: Path, metadata: dict[str, Any], message: str) -> None:
    check(changed(whole, metadata), message)


def test_missing_parts_are_explained(whole: Path) -> None:
    check(changed(whole, {}, without=("llama.block_count",)), "block_count is missing")
    check(changed(whole, {}, without=("tokenizer.ggml.tokens",)), "tokens is missing")
    check(changed(whole, {}, only=0), r"no token_embd\.weight")
    check(changed(whole, {}, only=5), "has no tensor")


def test_a_stretch_of_positions_that_is_not_llama_3s_is_refused(tmp_path: Path, whole: Path) -> None:
    entries = {
        name: Entry(format=BY_NAME["F32"][1], shape=shape, data=np.full(shape, 3.0, "f4").tobytes)
        for name, shape in (("token_embd.weight", (4, 32)), ("rope_freqs.weight", (4,)))
    }
    metadata = Container(whole).metadata | {"llama.block_count": 1}
    write_container(tmp_path / "m.gguf", metadata, entries)
    check(tmp_path / "m.gguf", "a way of its own")


def test_any_header_is_read_or_explained(whole: Path, tmp_path: Path) -> None:
    """Bytes of the header, small and large numbers put for lengths, and cuts, at random."""
    data = whole.read_bytes()
    header = data.index(b"output_norm.weight") + 64
    random, file, said = Random(0), tmp_path / "m.gguf", []
    for case in range(CASES):
        broken = bytearray(data)
        for _ in range(random.randint(1, 4)):
            at = random.choice([random.randrange(header), random.randrange(2000)])
            broken[at] = random.choice([0, 1, 255, random.randrange(256)])
        if case % 8 == 0:
            del broken[random.randrange(header) :]
        file.write_bytes(broken)
        said.append(refusal(file))
    errors = [error for error in said if error is not None]
    assert [error for error in errors if not (error.expected and error.fix)] == []
    assert 0 < len(errors) < CASES


def test_every_format_has_a_size(whole: Path) -> None:
    assert {f.name for f in FORMATS.values()} >= {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K"}
    for place in Container(whole).tensors.values():
        assert len(Container(whole).bytes_of(place)) == place.nbytes
