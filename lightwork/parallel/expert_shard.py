"""A rank of a model whose experts are dealt out: attention of any row, and some experts of every layer, in
torch.

Rows are computed so many at a time (`tile`), the last ones padded, and each row's attention by itself. So the
bits of a row do not depend on which others are on its rank; a row at a time they are those of `Model.forward`
on one token of one sequence.

R rows  T terms  K experts of a row  E experts of a layer  S sequences  d hidden  V vocabulary
G key-value heads  D head size
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lightwork.errors import CapacityError, RangeError
from lightwork.kernels.rows import Rows
from lightwork.models.checkpoint import open_checkpoint
from lightwork.models.model import KVPool, paged
from lightwork.models.parts import Part, each_part
from lightwork.models.spec import ModelSpec, read_spec
from lightwork.models.tiles import in_tiles
from lightwork.models.transformer import (
    attention,
    embed,
    expert,
    logits,
    mlp_down,
    mlp_up,
    norm,
    normalise,
    rotation,
    route,
)
from lightwork.models.weights import Weights, from_checkpoint
from lightwork.parallel.expert_dispatch import ExpertDispatch, Ints, RoutedRows
from lightwork.parallel.expert_placement import ExpertPlacement
from lightwork.runtime.effects import Compute

BLOCK, INT_BYTES = 16, 4


class ExpertShard:
    """Sequences that begin with `prompts` and go on greedily; see `expert_dispatch.Shard`.

    weights: with those experts that own_LE says, of each layer that has any. held: the sequences whose keys
    and values this rank keeps, in at most kv_cap_bytes. num_steps: of a token each. tile: rows computed at
    once. logits: [V] each, by (sequence, position), of the tokens that ended here, from prompts' last on.
    Raises CapacityError if keys and values do not fit, RangeError for a prompt without tokens.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        own_LE: NDArray[np.bool_],
        prompts: Sequence[Sequence[int]],
        held: Sequence[int],
        num_steps: int,
        *,
        tile: int = 1,
        kv_cap_bytes: int | None = None,
    ) -> None:
        self.spec = spec
        self.tile = tile
        self.logits: dict[tuple[int, int], Tensor] = {}
        self._weights = weights
        self._index = dict(zip(sorted(spec.moe), own_LE.cumsum(1) - 1, strict=True))
        self._seq, self._position = _places(prompts, num_steps)
        self._tokens = dict(enumerate(token for prompt in prompts for token in prompt))
        self._num_seqs, self._num_prompt = len(prompts), len(self._tokens)
        self._last = np.cumsum([len(prompt) for prompt in prompts]) - 1
        self._blocks = -(-(max(map(len, prompts)) + num_steps) // BLOCK)
        _check_room(spec, len(held) * self._blocks * BLOCK, weights.embed.dtype, kv_cap_bytes)
        self._row_of = {seq: i for i, seq in enumerate(held)}
        self._kv = KVPool(spec, len(held) * self._blocks, BLOCK, weights.embed.dtype, "cpu")
        self._attended: list[tuple[int, Ints]] = []

    @property
    def num_layers(self) -> int:
        return self.spec.num_layers

    @property
    def expert_layers(self) -> Sequence[int]:
        return sorted(self.spec.moe)

    def prompts(self, seqs: Sequence[int]) -> Ints:
        """Ids of the rows that these sequences' prompts are."""
        return np.flatnonzero(np.isin(self._seq[: self._num_prompt], [*seqs]))

    def begin(self, ids: Ints) -> Compute:
        return Compute((), self._begin, (ids,), "embed")

    def attend(self, layer: int, rows: RoutedRows) -> Compute:
        return Compute((), self._attend, (layer, rows), "attention")

    def dense(self, layer: int, rows: RoutedRows) -> Compute:
        return Compute((), self._dense, (layer, rows), "mlp")

    def route(self, layer: int, rows: RoutedRows) -> Compute:
        return Compute((), self._route, (layer, rows), "route")

    def experts(self, layer: int, rows: RoutedRows, row: Ints, k: Ints) -> Compute:
        return Compute((), self._terms, (layer, rows, row, k), "experts")

    def add(self, rows: RoutedRows, terms: RoutedRows) -> Compute:
        return Compute((), self._add, (rows, terms), "add")

    def finish(self, rows: RoutedRows) -> Compute:
        return Compute((), self._finish, (rows,), "head")

    def learn(self, messages: Sequence[Tensor]) -> Compute:
        return Compute((), self._learn, (messages,), "keep")

    def _begin(self, ids: Ints) -> RoutedRows:
        tokens_R = torch.tensor([self._tokens[i] for i in ids.tolist()], dtype=torch.int64)
        x_Rd = embed(self._weights, tokens_R, torch.from_numpy(self._position[ids]))
        return RoutedRows(ids, np.zeros((len(ids), self.spec.experts_per_token), np.int64), x_Rd)

    @torch.inference_mode()
    def _attend(self, layer: int, rows: RoutedRows) -> RoutedRows:
        self._attended.append((layer, rows.ids))
        parts = [rows.x[:0]]
        for start in range(0, len(rows.ids), self.tile):
            ids = rows.ids[start : start + self.tile]
            pad = self.tile - len(ids)
            x_Rd = F.pad(rows.x[start : start + self.tile], (0, 0, 0, pad))
            positions_R = F.pad(torch.from_numpy(self._position[ids]), (0, pad))
            cos_sin = rotation(self.spec, positions_R, x_Rd.dtype)
            attend = partial(self._each_alone, ids)
            x_Rd = x_Rd + attention(layer, x_Rd, self._weights.layers[layer], self.spec, cos_sin, attend)
            parts.append(x_Rd[: len(ids)])
        return rows._replace(x=torch.cat(parts))

    def _each_alone(self, ids: Ints, layer: int, q_RHD: Tensor, k_RGD: Tensor, v_RGD: Tensor) -> Tensor:
        out_RHD = torch.zeros_like(q_RHD)
        for i, rows in enumerate(map(self._alone, ids.tolist())):
            one = slice(i, i + 1)
            see = paged(self.spec, rows, self._kv, "cpu")
            out_RHD[one] = see(layer, q_RHD[one], k_RGD[one], v_RGD[one])
        return out_RHD

    def _alone(self, row: int) -> Rows:
        """One row as a step of its own."""
        at = self._position[row : row + 1]
        first = self._row_of[int(self._seq[row])] * self._blocks
        return Rows(
            tokens=np.zeros(1, np.int64),
            positions=at,
            slots=first * BLOCK + at,
            seqs=np.zeros(1, np.int32),
            index=at,
            ancestors=np.zeros(1, np.uint64),
            known=at + 1,
            tables=np.arange(first, first + self._blocks, dtype=np.int32)[None],
            scored=np.zeros(0, np.int64),
        )

    def _normalised(self, layer: int, x_Rd: Tensor) -> Tensor:
        weights = self._weights.layers[layer]
        return norm(x_Rd, weights.norm2, weights.norm2_bias, self.spec)

    @torch.inference_mode()
    def _dense(self, layer: int, rows: RoutedRows) -> RoutedRows:
        weights = self._weights.layers[layer]

        def mlp(x_Rd: Tensor) -> Tensor:
            return x_Rd + mlp_down(mlp_up(x_Rd, weights, self.spec), weights)

        return rows._replace(x=in_tiles(mlp, rows.x, self.tile))

    @torch.inference_mode()
    def _route(self, layer: int, rows: RoutedRows) -> RoutedRows:
        def chosen(x_Rd: Tensor) -> Tensor:
            return route(self._normalised(layer, x_Rd), self._weights.layers[layer], self.spec)[2]

        return rows._replace(chosen=in_tiles(chosen, rows.x, self.tile).numpy())

    @torch.inference_mode()
    def _terms(self, layer: int, rows: RoutedRows, row: Ints, k: Ints) -> RoutedRows:
        def gates(x_Rd: Tensor) -> Tensor:
            return route(self._normalised(layer, x_Rd), self._weights.layers[layer], self.spec)[1]

        gates_RK = in_tiles(gates, rows.x, self.tile)
        chosen_T = rows.chosen[row, k]
        y_Td = rows.x.new_empty((len(row), rows.x.shape[1]))
        for e in np.unique(chosen_T).tolist():
            mine = np.flatnonzero(chosen_T == e)
            y_Td[mine] = in_tiles(partial(self._expert, layer, e), rows.x[row[mine]], self.tile)
        y_Td *= gates_RK[row, k, None].to(y_Td.dtype)
        return RoutedRows(rows.ids[row], chosen_T[:, None], y_Td)

    def _expert(self, layer: int, e: int, x_Rd: Tensor) -> Tensor:
        weights, at = self._weights.layers[layer], int(self._index[layer][e])
        return expert(self._normalised(layer, x_Rd), weights.up[at], weights.down[at], self.spec)

    @torch.inference_mode()
    def _add(self, rows: RoutedRows, terms: RoutedRows) -> RoutedRows:
        at = {row: i for i, row in enumerate(rows.ids.tolist())}
        out_Rd = torch.zeros_like(rows.x)
        for e in np.unique(terms.chosen).tolist():
            mine = np.flatnonzero(terms.chosen[:, 0] == e)
            index = torch.tensor([at[row] for row in terms.ids[mine].tolist()])
            out_Rd.index_add_(0, index, terms.x[mine])
        return rows._replace(x=rows.x + out_Rd)

    @torch.inference_mode()
    def _finish(self, rows: RoutedRows) -> Ints:
        ends = np.flatnonzero(rows.ids >= self._last[self._seq[rows.ids]])

        def score(x_Rd: Tensor) -> Tensor:
            return logits(self._weights, normalise(self._weights, self.spec, x_Rd))

        scores_NV = in_tiles(score, rows.x[ends], self.tile)
        ids = rows.ids[ends]
        following: Ints = np.where(
            ids < self._num_prompt, self._num_prompt + self._seq[ids], ids + self._num_seqs
        )
        for row, after, scores_V in zip(ids.tolist(), following.tolist(), scores_NV, strict=True):
            self.logits[int(self._seq[row]), int(self._position[row])] = scores_V
            self._tokens[after] = int(scores_V.argmax())
        return following

    def news(self) -> Tensor:
        """[N, bytes]: of each layer and row, these two numbers, its keys and its values."""
        layers_N = np.concatenate([np.full(len(ids), layer) for layer, ids in self._attended])
        ids_N = np.concatenate([ids for _, ids in self._attended])
        self._attended = []
        slots_N = torch.from_numpy(self._slots(ids_N))
        kept = [pool[layers_N, slots_N].flatten(1) for pool in (self._kv.keys_LTGD, self._kv.values_LTGD)]
        return _as_bytes(np.stack((layers_N, ids_N), 1), *kept)

    def _learn(self, messages: Sequence[Tensor]) -> None:
        dtype, width = self._weights.embed.dtype, self.spec.num_kv_heads * self.spec.head_size
        numbers, k_NW, v_NW = _from_bytes(torch.cat([*messages]), 2, dtype, width, width)
        slots_N = torch.from_numpy(self._slots(numbers[:, 1]))
        for pool, kept_NW in ((self._kv.keys_LTGD, k_NW), (self._kv.values_LTGD, v_NW)):
            pool[numbers[:, 0], slots_N] = kept_NW.view(-1, *pool.shape[2:])

    def _slots(self, ids: Ints) -> Ints:
        first = np.array([self._row_of[seq] for seq in self._seq[ids].tolist()], np.int64)
        slots: Ints = first * self._blocks * BLOCK + self._position[ids]
        return slots

    def pack(self, rows: RoutedRows) -> Tensor:
        return _as_bytes(np.concatenate((rows.ids[:, None], rows.chosen), 1), rows.x)

    def unpack(self, message: Tensor) -> RoutedRows:
        size, width = self._weights.embed.element_size(), self.spec.hidden_size
        columns = (message.shape[1] - width * size) // INT_BYTES
        numbers, x_Rd = _from_bytes(message, columns, self._weights.embed.dtype, width)
        return RoutedRows(numbers[:, 0], numbers[:, 1:], x_Rd)

    def join(self, parts: Sequence[RoutedRows]) -> RoutedRows:
        ids, chosen, x = zip(*parts, strict=True)
        return RoutedRows(np.concatenate(ids), np.concatenate(chosen), torch.cat(x))


def _as_bytes(numbers: Ints, *tensors: Tensor) -> Tensor:
    """Rows of whole numbers and of tensors, side by side, bit for bit: uint8 [R, bytes]."""
    whole = torch.empty(numbers.shape, dtype=torch.int32).copy_(torch.from_numpy(numbers))
    return torch.cat([part.contiguous().view(torch.uint8) for part in (whole, *tensors)], 1)


def _from_bytes(rows: Tensor, columns: int, dtype: torch.dtype, *widths: int) -> tuple[Any, ...]:
    """The inverse: `columns` whole numbers, then tensors of these widths."""
    sizes = [columns * INT_BYTES, *(width * dtype.itemsize for width in widths)]
    whole, *parts = (part.contiguous() for part in torch.split(rows, sizes, 1))
    numbers = whole.view(torch.int32).numpy().astype(np.int64)
    return numbers, *(part.view(dtype) for part in parts)


def _places(prompts: Sequence[Sequence[int]], num_steps: int) -> tuple[Ints, Ints]:
    """Sequence and position of every row: the prompts' tokens in order, then steps of a token each."""
    lengths = np.array([len(prompt) for prompt in prompts])
    if not lengths.size or not lengths.min():
        raise RangeError("there is a prompt without tokens", expected="at least 1 token in each of 1 or more")
    seqs = np.arange(len(prompts))
    seq = np.concatenate((np.repeat(seqs, lengths), np.tile(seqs, num_steps)))
    steps = [lengths + step for step in range(num_steps)]
    return seq, np.concatenate([*map(np.arange, lengths), *steps])


def _check_room(spec: ModelSpec, num_tokens: int, dtype: torch.dtype, cap_bytes: int | None) -> None:
    needed = num_tokens * spec.kv_bytes_per_token(str(dtype).removeprefix("torch."))
    if cap_bytes is not None and needed > cap_bytes:
        raise CapacityError(
            f"keys and values of {num_tokens} tokens take {needed} bytes on a rank",
            expected=f"at most {cap_bytes}",
            fix="return_home=True: then a rank keeps only those of its own sequences",
        )


def open_expert_weights(folder: Path, placement: ExpertPlacement, rank: int) -> tuple[ModelSpec, Weights]:
    """Of a model in a folder: its shape, and its weights in float32 with only those experts that a rank has,
    in ascending order.

    Raises CheckpointError; RangeError if the model has other experts than those that are placed.
    """
    spec = read_spec(folder)
    shape = len(spec.moe), spec.num_experts
    if placement.rank_LE.shape != shape:
        raise RangeError(
            f"placed are {placement.rank_LE.shape} experts, by layer", expected=f"{shape}, which {folder} has"
        )
    checkpoint = open_checkpoint(folder)
    held = dict(zip(sorted(spec.moe), placement.rank_LE == rank, strict=True))

    def own(part: Part) -> Part:
        if part.layer not in spec.moe or part.name not in ("up", "down"):
            return part
        tensors = [*part.tensors]
        each = len(tensors) // spec.num_experts
        return part._replace(
            tensors=[named for i, named in enumerate(tensors) if held[part.layer][i // each]]
        )

    share = replace(spec, num_experts=spec.num_experts // placement.num_ranks)
    weights = from_checkpoint(
        share, lambda name, size: checkpoint.get(name, size).float(), map(own, each_part(spec))
    )
    return spec, weights


async def generate(
    me: int,
    n: int,
    folder: str,
    dispatch: ExpertDispatch,
    prompts: Sequence[Sequence[int]],
    num_steps: int,
    tile: int = 1,
    kv_cap_bytes: int | None = None,
) -> dict[tuple[int, int], Tensor]:
    """A rank's part in greedy generation, for `run_processes`: the logits of tokens that ended here.

    Sequence i is at home on rank i % n.
    """
    spec, weights = open_expert_weights(Path(folder), dispatch.placement, me)
    held = range(me, len(prompts), n) if dispatch.return_home else range(len(prompts))
    shard = ExpertShard(
        spec,
        weights,
        dispatch.placement.rank_LE == me,
        prompts,
        held,
        num_steps,
        tile=tile,
        kv_cap_bytes=kv_cap_bytes,
    )
    await dispatch.generate(me, n, shard, shard.prompts(range(me, len(prompts), n)), num_steps)
    return shard.logits
