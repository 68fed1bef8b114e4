"""Train models whose MLPs are big, small or left out (models/duo.py), both widths together, randomly routed.

Each row of each step draws its choice in each layer anew, all equally likely, so that every mixture is
something the model was trained on; the loss is that of the next token. On disk such a model is the folder of
the big path, which any engine serves, with the small MLPs in a folder of their own inside.

B sequences  T tokens  R rows  N scored rows  L layers  V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Generator, Tensor

from lightwork.errors import CheckpointError, RangeError
from lightwork.models.checkpoint import Checkpoint, write_tensors
from lightwork.models.duo import BIG, SMALL, Choose, Duo, forward, given, narrowed
from lightwork.models.parts import each_part
from lightwork.models.spec import ModelSpec, read_spec
from lightwork.models.transformer import logits
from lightwork.models.weights import Weights, from_checkpoint, joined, to_checkpoint
from lightwork.train.export import hf_config, save_model, write_json
from lightwork.train.initial import initial_weights
from lightwork.train.pretrain import Batch, Progress, Settings, dense_attention, optimise

SMALL_FOLDER = "small_mlps"


def initial_duo(spec: ModelSpec, small_width: int, seed: int) -> Duo:
    """Fresh float32 weights that require gradients. Raises RangeError unless small is narrower than big."""
    if not 0 < small_width < spec.ffn_size:
        raise RangeError(f"small MLPs are {small_width} wide", expected=f"1 to {spec.ffn_size - 1}")
    big = initial_weights(spec, seed)
    other = initial_weights(narrowed(spec, small_width), seed + 1)
    return _joined(spec, big, [(layer.up, layer.down) for layer in other.layers])


def _joined(spec: ModelSpec, big: Weights, mlps: Sequence[tuple[Tensor, Tensor]]) -> Duo:
    layers = [replace(layer, up=up, down=down) for layer, (up, down) in zip(big.layers, mlps, strict=True)]
    return Duo(spec=spec, big=big, small=replace(big, layers=layers))


def train_duo(
    duo: Duo,
    batches: Iterable[Batch],
    settings: Settings,
    *,
    options: Sequence[int] = (SMALL, BIG),
    seed: int = 0,
) -> Iterator[Progress]:
    """Train in place, one step per batch, and report each. options: what rows draw from, each layer anew."""
    rng, drawn_from = Generator().manual_seed(seed), torch.tensor(options)

    def loss(batch: Batch) -> Tensor:
        num_rows = batch.tokens_BT[:, 1:].numel()
        drawn = torch.randint(len(options), (num_rows, duo.spec.num_layers), generator=rng)
        return F.cross_entropy(*predict_routed(duo, batch, given(drawn_from[drawn])))

    return optimise(duo.tensors(), loss, batches, settings)


def predict_routed(duo: Duo, batch: Batch, choose: Choose) -> tuple[Tensor, Tensor]:
    """As `pretrain.predict`, for rows routed so."""
    tokens, scored = batch.tokens_BT, batch.scored_BT[:, 1:]
    inputs_R, positions_R = tokens[:, :-1].reshape(-1), batch.positions_BT[:, :-1].reshape(-1)
    hidden_Rd, _ = forward(duo, inputs_R, positions_R, dense_attention(len(tokens), duo.spec), choose)
    return logits(duo.big, hidden_Rd[scored.reshape(-1)]), tokens[:, 1:][scored]


def save_duo(folder: Path, duo: Duo, tokenizer: Tokenizer, dtype: torch.dtype = torch.float32) -> None:
    """Write the big path as `save_model` does, and the small MLPs beside it. dtype: of the stored weights."""
    save_model(folder, duo.big, duo.spec, tokenizer, dtype)
    own = {name: t for name, t in to_checkpoint(duo.small, duo.small_spec).items() if ".mlp." in name}
    small = folder / SMALL_FOLDER
    small.mkdir(exist_ok=True)
    write_json(small / "config.json", hf_config(duo.small_spec, dtype))
    state = {k: v.detach().to(dtype).contiguous().clone() for k, v in own.items()}
    write_tensors(small / "model.safetensors", state)


def read_duo(folder: Path) -> Duo:
    """What `save_duo` wrote, in the type it is stored in. Raises CheckpointError for what does not fit."""
    spec, small_spec = read_spec(folder), read_spec(folder / SMALL_FOLDER)
    if narrowed(spec, small_spec.ffn_size) != replace(small_spec, name=spec.name):
        raise CheckpointError(
            f"{folder / SMALL_FOLDER} is of another model",
            expected="the config.json of the folder around it, but for intermediate_size",
            fix="copy both again",
        )
    whole, small = Checkpoint(folder), Checkpoint(folder / SMALL_FOLDER)
    big = from_checkpoint(spec, whole.get)
    whole.check_all_read()
    mlps: list[dict[str, Tensor]] = [{} for _ in range(spec.num_layers)]
    for part in each_part(small_spec):
        if part.name in ("up", "down"):
            mlps[part.layer][part.name] = joined(small_spec, part, small.get)
    small.check_all_read()
    return _joined(spec, big, [(mlp["up"], mlp["down"]) for mlp in mlps])
