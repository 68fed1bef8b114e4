"""Train an encoder-decoder from nothing on pairs of texts, and write it as mBART is written.

Teacher forcing: the decoder reads the target, moved one token to the right. Weights start near what such a
model has to find out first (Trockman and Kolter, "Mimetic initialization", 2023): tables of positions are
waves, and a look at the source compares like with like and copies what it finds, so that rows see what stands
at their own place.

B pairs  S source tokens  T target tokens  N scored rows  d hidden  H heads  D head size  V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Generator, Tensor

from lightwork.models.checkpoint import write_tensors
from lightwork.models.seq2seq import (
    OFFSET,
    Cross,
    Half,
    Seq2Seq,
    decode,
    encode,
    keys_values,
    scores,
    to_checkpoint,
)
from lightwork.models.spec import ModelSpec
from lightwork.models.transformer import Attend
from lightwork.models.weights import Layer
from lightwork.train.export import write_json
from lightwork.train.pretrain import Progress, Settings, optimise
from lightwork.train.vocabulary import BOS, END, save_tokenizer

STD = 0.05
MATCH = 1.5  # of like rows over unlike ones, in logits per 1/sqrt(D) of a head's width
COPY = 0.5  # share of the source's row that a look adds


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Texts and what they are to become, each ended and filled up with the token that ends it.

    sources_BS, tokens_BT: int64. source_lengths_B, lengths_B: of the texts, that token included.
    """

    sources_BS: Tensor
    source_lengths_B: Tensor
    tokens_BT: Tensor
    lengths_B: Tensor

    @classmethod
    def of(cls, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], end: int) -> Pairs:
        """end: the token that ends the texts already."""
        sources, targets = zip(*pairs, strict=True)
        return cls(
            sources_BS=_filled(sources, end),
            source_lengths_B=torch.tensor([len(s) for s in sources]),
            tokens_BT=_filled(targets, end),
            lengths_B=torch.tensor([len(t) for t in targets]),
        )


def _filled(texts: Sequence[Sequence[int]], end: int) -> Tensor:
    longest = max(map(len, texts))
    return torch.tensor([[*text, *[end] * (longest - len(text))] for text in texts])


def mbart_spec(**shape: Any) -> ModelSpec:
    """mBART's kind of model. shape: what of `ModelSpec` the family does not settle."""
    return ModelSpec(
        family="mbart",
        norm="layer",
        position="learned",
        activation="gelu",
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tied=True,
        **shape,
    )


def initial_seq2seq(spec: ModelSpec, seed: int) -> Seq2Seq:
    """Float32 weights that require gradients."""
    rng = Generator().manual_seed(seed)
    weights = Seq2Seq(
        embed=_normal(rng, spec.vocab_size, spec.hidden_size),
        bias=torch.zeros(1, spec.vocab_size),
        encoder=_half(spec, spec.encoder_layers, rng),
        decoder=_half(spec, spec.num_layers, rng),
        cross=[_cross(spec.hidden_size, rng) for _ in range(spec.num_layers)],
    )
    for tensor in weights.tensors():
        tensor.requires_grad_(True)
    return weights


def _normal(rng: Generator, *shape: int, std: float = STD) -> Tensor:
    return torch.empty(shape).normal_(0.0, std, generator=rng)


def _half(spec: ModelSpec, num_layers: int, rng: Generator) -> Half:
    d, f, std = spec.hidden_size, spec.ffn_size, STD / sqrt(2 * num_layers)
    layers = [
        Layer(
            norm1=torch.ones(d),
            norm1_bias=torch.zeros(d),
            qkv=_normal(rng, 3 * d, d),
            qkv_bias=torch.zeros(3 * d),
            out=_normal(rng, d, d, std=std),
            out_bias=torch.zeros(d),
            norm2=torch.ones(d),
            norm2_bias=torch.zeros(d),
            up=_normal(rng, f, d),
            up_bias=torch.zeros(f),
            down=_normal(rng, d, f, std=std),
            down_bias=torch.zeros(d),
        )
        for _ in range(num_layers)
    ]
    return Half(
        positions=_waves(OFFSET + spec.max_len, d),
        embed_norm=torch.ones(d),
        embed_norm_bias=torch.zeros(d),
        layers=layers,
        norm=torch.ones(d),
        norm_bias=torch.zeros(d),
    )


def _waves(rows: int, d: int) -> Tensor:
    """Sines and cosines as long as embeddings, whose periods reach from 6 tokens to the whole table."""
    frequencies = float(rows) ** (-torch.arange(d // 2) / (d // 2))
    angles = torch.arange(rows)[:, None] * frequencies
    return STD * sqrt(2) * torch.cat((angles.sin(), angles.cos()), 1)


def _cross(d: int, rng: Generator) -> Cross:
    compare_dd, copy_dd = (torch.linalg.qr(torch.randn(d, d, generator=rng)).Q for _ in range(2))
    return Cross(
        norm=torch.ones(d),
        norm_bias=torch.zeros(d),
        q=sqrt(MATCH) * compare_dd,
        q_bias=torch.zeros(d),
        kv=torch.cat((sqrt(MATCH) * compare_dd, sqrt(COPY) * copy_dd)),
        kv_bias=torch.zeros(2 * d),
        out=sqrt(COPY) * copy_dd.T.contiguous(),
        out_bias=torch.zeros(d),
    )


def train_seq2seq(
    weights: Seq2Seq, spec: ModelSpec, batches: Iterable[Pairs], settings: Settings, *, start: int
) -> Iterator[Progress]:
    """Train in place, one step per batch, and report each. start: the token that outputs begin with."""

    def loss(pairs: Pairs) -> Tensor:
        return F.cross_entropy(*predict(weights, spec, pairs, start))

    return optimise(weights.tensors(), loss, batches, settings)


def predict(weights: Seq2Seq, spec: ModelSpec, pairs: Pairs, start: int) -> tuple[Tensor, Tensor]:
    """Logits [N, V] for the target's tokens, each from those before it, and the tokens [N]."""
    scored_BT = torch.arange(pairs.tokens_BT.shape[1]) < pairs.lengths_B[:, None]
    hidden_BTd = causal(weights, spec, pairs, start)
    return scores(weights, hidden_BTd[scored_BT]), pairs.tokens_BT[scored_BT]


def causal(weights: Seq2Seq, spec: ModelSpec, pairs: Pairs, start: int) -> Tensor:
    """Hidden states [B, T, d], each from the target's tokens before it."""
    inputs_BT = F.pad(pairs.tokens_BT[:, :-1], (1, 0), value=start)
    num = inputs_BT.shape[1]
    return read_and_write(weights, spec, pairs, inputs_BT, torch.ones(1, num, num, dtype=torch.bool).tril())


def read_and_write(
    weights: Seq2Seq, spec: ModelSpec, pairs: Pairs, inputs_BT: Tensor, visible_BTT: Tensor
) -> Tensor:
    """Hidden states [B, T, d] of the decoder's inputs. visible_BTT: which of them each sees, B or 1 of it."""
    (num, width), t = pairs.sources_BS.shape, inputs_BT.shape[1]
    seen_B1S = (torch.arange(width) < pairs.source_lengths_B[:, None])[:, None]
    at_source = dense(num, seen_B1S)
    places = torch.arange(width).repeat(num)
    sources = keys_values(
        weights, spec, encode(weights, spec, pairs.sources_BS.reshape(-1), places, at_source)
    )

    def look(layer: int, q_RHD: Tensor) -> Tensor:
        return at_source(layer, q_RHD, *sources[layer])

    places = torch.arange(t).repeat(num)
    hidden_Rd = decode(weights, spec, inputs_BT.reshape(-1), places, dense(num, visible_BTT), look)
    return hidden_Rd.view(num, t, -1)


def dense(num: int, visible_BTK: Tensor) -> Attend:
    """Attention within each of so many sequences of one length. visible_BTK: which keys a row sees; 1 in
    place of B or T means all."""

    def attend(layer: int, q_RHD: Tensor, k_RHD: Tensor, v_RHD: Tensor) -> Tensor:
        q, k, v = (x.view(num, -1, *x.shape[1:]).transpose(1, 2) for x in (q_RHD, k_RHD, v_RHD))
        out_BHTD = F.scaled_dot_product_attention(q, k, v, attn_mask=visible_BTK[:, None])
        return out_BHTD.transpose(1, 2).reshape(q_RHD.shape)

    return attend


def save_seq2seq(folder: Path, weights: Seq2Seq, spec: ModelSpec, tokenizer: Tokenizer) -> None:
    """Write config.json, generation_config.json, model.safetensors and the tokenizer's files, in float32.

    Raises LightworkError if there is no room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    begin, end = tokenizer.token_to_id(BOS), tokenizer.token_to_id(END)
    ids = {"bos_token_id": begin, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": begin}
    write_json(folder / "config.json", mbart_config(spec) | ids)
    write_json(folder / "generation_config.json", {"do_sample": False, "num_beams": 1, **ids})
    state = {k: v.detach().contiguous().clone() for k, v in to_checkpoint(weights, spec).items()}
    write_tensors(folder / "model.safetensors", state)
    save_tokenizer(tokenizer, folder, spec.max_len)


def mbart_config(spec: ModelSpec) -> dict[str, Any]:
    """config.json of an mBART."""
    return {
        "architectures": ["MBartForConditionalGeneration"],
        "model_type": "mbart",
        "is_encoder_decoder": True,
        "vocab_size": spec.vocab_size,
        "d_model": spec.hidden_size,
        "encoder_layers": spec.encoder_layers,
        "decoder_layers": spec.num_layers,
        "encoder_attention_heads": spec.num_heads,
        "decoder_attention_heads": spec.num_heads,
        "encoder_ffn_dim": spec.ffn_size,
        "decoder_ffn_dim": spec.ffn_size,
        "activation_function": spec.activation,
        "max_position_embeddings": spec.max_len,
        "scale_embedding": spec.embed_scale != 1.0,
        "tie_word_embeddings": True,
        "forced_eos_token_id": None,
        "torch_dtype": "float32",
    }
