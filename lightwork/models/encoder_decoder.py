"""An encoder-decoder as the engine runs it: a prompt is the source, then the token that outputs begin with.

A source's rows go through the encoder, all in one step, and what each layer of the decoder sees of them is
written once, into their own slots. So keys and values of the source are paged, counted and rolled back like
any others, and a decoder's row is a row: it looks at the slots below `Rows.encoded`, and attends to those
from there on.

R rows  S sequences  M rows of each  d hidden  H heads  D head size  K keys  N scored rows  V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightwork.errors import CheckpointError, InvariantError
from lightwork.kernels.attention import Group, paged_attention, plan_groups
from lightwork.kernels.rows import Rows
from lightwork.models.checkpoint import open_checkpoint
from lightwork.models.model import DTYPES, KVPool
from lightwork.models.seq2seq import (
    Seq2Seq,
    decode,
    encode,
    from_checkpoint,
    keys_values,
    ragged,
    scores,
)
from lightwork.models.spec import ModelSpec, read_json, read_spec
from lightwork.models.tokenizer import Tokenizer

COPIES = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
"""Tensors that some checkpoints hold beside the one that they are."""


class EncoderDecoder:
    """Weights and tokenizer of one checkpoint. start: the token that outputs begin with. shared_keys: see
    `CompiledModel`."""

    shared_keys: Sequence[int] = ()

    def __init__(self, spec: ModelSpec, weights: Seq2Seq, tokenizer: Tokenizer, start: int) -> None:
        self.spec = spec
        self.weights = weights
        self.tokenizer = tokenizer
        self.start = start
        self.dtype = weights.embed.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(tensor.nbytes for tensor in self.weights.tensors())

    def prompt(self, source: Sequence[int]) -> tuple[int, ...]:
        """For a request with `encoded` = len(source)."""
        return (*source, self.start)

    def new_kv(self, num_blocks: int, block_size: int, *, shared: int | None = None) -> KVPool:
        """shared: memory of the host to use, see `arrays`."""
        return KVPool(self.spec, num_blocks, block_size, self.dtype, "cpu", shared)

    def new_host_kv(self, num_blocks: int, block_size: int) -> KVPool:
        return self.new_kv(num_blocks, block_size)

    def set_threads(self, num_threads: int) -> None:
        """Threads that torch computes with, in this whole process."""
        torch.set_num_threads(num_threads)

    def close(self) -> None:
        """Nothing to end: torch's threads are the process's own."""

    def logits(self, rows: Rows, kv: KVPool) -> NDArray[np.float32]:
        return self.forward(rows, kv).numpy()

    @torch.inference_mode()
    def forward(self, rows: Rows, kv: KVPool) -> Tensor:
        """Write the rows' keys and values and return the logits of the scored ones, float32 [N, V].

        Raises InvariantError for a sequence without a source, and for a source that is not whole.
        """
        encoded_S = _sources(rows)
        of_source_R = rows.index < encoded_S[rows.seqs]
        if of_source_R.any():
            self._read(rows, np.flatnonzero(of_source_R), encoded_S, kv)
        own = np.flatnonzero(~of_source_R)
        hidden_Rd = self._write(_picked(rows, own), encoded_S, kv)
        at_N = np.searchsorted(own, rows.scored)
        return scores(self.weights, hidden_Rd[torch.from_numpy(at_N)]).float()

    def _read(self, rows: Rows, at: NDArray[np.int64], encoded_S: NDArray[np.int64], kv: KVPool) -> None:
        """Encode sources, and write what the decoder sees of them."""
        counts_S = np.bincount(rows.seqs[at], minlength=len(encoded_S))
        read = counts_S > 0
        if (counts_S[read] != encoded_S[read]).any():
            raise InvariantError(
                f"a step has {counts_S[read]} rows of sources of {encoded_S[read]} tokens",
                expected="whole sources: what an encoder says of a token depends on all",
                fix="KVCache(prefix_cache=False), and a scheduler that does not cut them",
            )
        positions_R = torch.from_numpy(rows.index[at])
        tokens_R = torch.from_numpy(rows.tokens[at])
        attend = ragged(counts_S[read].tolist())
        encoded_Rd = encode(self.weights, self.spec, tokens_R, positions_R, attend)
        slots_R = torch.from_numpy(rows.slots[at])
        for layer, (k, v) in enumerate(keys_values(self.weights, self.spec, encoded_Rd)):
            kv.keys_LTGD[layer].index_copy_(0, slots_R, k)
            kv.values_LTGD[layer].index_copy_(0, slots_R, v)

    def _write(self, rows: Rows, encoded_S: NDArray[np.int64], kv: KVPool) -> Tensor:
        """Hidden states of the decoder's rows."""
        own, source = _seen(rows, encoded_S, kv.block_size)
        slots_R = torch.from_numpy(rows.slots)

        def attend(layer: int, q_RHD: Tensor, k_RHD: Tensor, v_RHD: Tensor) -> Tensor:
            kv.keys_LTGD[layer].index_copy_(0, slots_R, k_RHD)
            kv.values_LTGD[layer].index_copy_(0, slots_R, v_RHD)
            return paged_attention(q_RHD, kv.keys_LTGD[layer], kv.values_LTGD[layer], own, None)

        def look(layer: int, q_RHD: Tensor) -> Tensor:
            return paged_attention(q_RHD, kv.keys_LTGD[layer], kv.values_LTGD[layer], source, None)

        positions_R = torch.from_numpy(rows.positions - encoded_S[rows.seqs])
        tokens_R = torch.from_numpy(rows.tokens)
        return decode(self.weights, self.spec, tokens_R, positions_R, attend, look)


def _sources(rows: Rows) -> NDArray[np.int64]:
    """How long each sequence's source is, [S]."""
    encoded_S = np.array(rows.encoded, np.int64)
    if not len(encoded_S) or not encoded_S.all():
        raise InvariantError(
            "a sequence has no source, and this model's encoder reads one",
            expected="a token or more",
            fix="Request(encoded=...)",
        )
    return encoded_S


def _picked(rows: Rows, at: NDArray[np.int64]) -> Rows:
    """Some rows of a step, none of them scored."""
    per_row = ("tokens", "positions", "slots", "seqs", "index", "ancestors")
    return replace(rows, scored=at[:0], **{name: getattr(rows, name)[at] for name in per_row})


def _seen(rows: Rows, encoded_S: NDArray[np.int64], block_size: int) -> tuple[list[Group], list[Group]]:
    """What decoder rows attend to, and what they see of their sources."""
    own, source = [], []
    for group in plan_groups(rows, block_size, "cpu", windows=False):
        first = group.rows.view(len(group.visible), -1)[:, 0]
        ends_S11 = torch.from_numpy(encoded_S[rows.seqs[first.numpy()]])[:, None, None]
        behind = torch.arange(group.visible.shape[2]) >= ends_S11
        own.append(replace(group, visible=group.visible & behind))
        source.append(replace(group, visible=(~behind).expand_as(group.visible)))
    return own, source


def open_seq2seq(folder: Path, dtype: str) -> EncoderDecoder:
    """Load a Hugging Face folder. Raises CheckpointError."""
    spec, config = read_spec(folder), read_json(folder, "config.json")
    start = config.get("decoder_start_token_id")
    if not spec.encoder_layers or not isinstance(start, int):
        raise CheckpointError(
            f"{folder} holds a {spec.family} that outputs begin with {start!r} of",
            expected="an encoder-decoder, and its decoder_start_token_id in config.json",
            fix="models.load, if it is a decoder alone",
        )
    checkpoint = open_checkpoint(folder)
    for name in COPIES:
        checkpoint.skip(name)

    def get(name: str, shape: tuple[int, ...]) -> Tensor:
        return checkpoint.get(name, shape).to(DTYPES[dtype])

    weights = from_checkpoint(spec, get)
    checkpoint.check_all_read()
    return EncoderDecoder(spec, weights, Tokenizer(folder), start)
