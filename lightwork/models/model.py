"""A loaded model: weights, tokenizer, and its forward over rows with paged keys and values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightwork.errors import RangeError
from lightwork.kernels.attention import paged_attention, plan_groups
from lightwork.kernels.rows import Rows
from lightwork.models.adapted import Placed, adapt_rows, place
from lightwork.models.adapter_set import AdapterSet
from lightwork.models.arena import arrays, discard
from lightwork.models.checkpoint import open_checkpoint
from lightwork.models.layer_plan import LayerPlan
from lightwork.models.prompt_tokens import as_probes
from lightwork.models.spec import ModelSpec, read_json, read_spec
from lightwork.models.tokenizer import Tokenizer
from lightwork.models.transformer import Attend, Routed, forward, logits, unseen
from lightwork.models.weights import Weights, from_checkpoint
from lightwork.runtime.progress import Progress

if TYPE_CHECKING:
    from lightwork.models.chains import Chains

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}

HELD_AS = {
    torch.float32: np.float32,
    torch.bfloat16: np.int16,
    torch.float16: np.float16,
    torch.float64: np.float64,
}
"""numpy has no bfloat16."""


class KVPool:
    """Keys and values of all slots, [layers, slots, G, D] each, on the model's device.

    shared: memory of the host to use, see `arrays`.
    """

    def __init__(
        self,
        spec: ModelSpec,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: str,
        shared: int | None = None,
    ) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        shape = (spec.num_layers, num_blocks * block_size, spec.num_kv_heads, spec.head_size)
        self._host = arrays([(shape, HELD_AS[dtype])] * 2, shared) if device == "cpu" else []
        if device == "cpu":
            self.keys_LTGD, self.values_LTGD = (torch.from_numpy(a).view(dtype) for a in self._host)
        else:
            self.keys_LTGD = torch.zeros(shape, dtype=dtype, device=device)
            self.values_LTGD = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def nbytes(self) -> int:
        return self.keys_LTGD.nbytes + self.values_LTGD.nbytes

    def copy(self, src: Sequence[int], dst: Sequence[int]) -> None:
        """Copy slots, in all layers; sources are read before anything is written."""
        for pool in (self.keys_LTGD, self.values_LTGD):
            pool[:, list(dst)] = pool[:, list(src)]

    def pull(self, other: KVPool, runs: Sequence[tuple[int, int, int]]) -> None:
        """Copy blocks of another pool, of the same shape but for their number, in all layers.

        runs: (its block, this one's block, how many from there on).
        """
        size = self.block_size
        for mine, theirs in (
            (self.keys_LTGD, other.keys_LTGD),
            (self.values_LTGD, other.values_LTGD),
        ):
            for src, dst, num in runs:
                mine[:, dst * size : (dst + num) * size] = theirs[:, src * size : (src + num) * size]

    def discard(self, blocks: range) -> None:
        """Give the memory of blocks that hold nothing back to the host; a device keeps it."""
        for numbers in self._host:
            for layer in numbers:
                discard(layer[blocks.start * self.block_size : blocks.stop * self.block_size])


class Model:
    """Weights and tokenizer of one checkpoint. generation: its generation_config.json.

    hidden: (rows, kv) -> normalised hidden states [R, d], keys and values written; how its layers are carried
    out, for others to replace. score: (rows, those of the scored) -> logits, likewise. chains: models that it
    computes in place of its own, see `chains.share`. routed: told which experts its rows take. reads_once,
    shared_keys: see `CompiledModel`.
    """

    reads_once = False
    shared_keys: Sequence[int] = ()
    chains: Chains | None = None
    routed: Routed = staticmethod(unseen)

    def __init__(
        self, spec: ModelSpec, weights: Weights, tokenizer: Tokenizer, generation: dict[str, Any], device: str
    ) -> None:
        self.spec = spec
        self.weights = weights
        self.tokenizer = tokenizer
        self.generation = generation
        self.device = device
        self.dtype = weights.embed.dtype
        self.adapters: AdapterSet[Placed] = AdapterSet(
            spec, lambda adapter: place(adapter, spec, self.dtype, device)
        )
        self.variants: Mapping[str, str] = self.adapters.variants
        self.hidden: Callable[[Rows, KVPool], Tensor] = self._layer_by_layer
        self.score: Callable[[Rows, Tensor], Tensor] = lambda rows, hidden_Nd: logits(self.weights, hidden_Nd)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return self.weights.nbytes if self.chains is None else self.chains.nbytes

    def new_kv(self, num_blocks: int, block_size: int, *, shared: int | None = None) -> KVPool:
        """shared: memory of the host to use, see `arrays`."""
        return KVPool(self.spec, num_blocks, block_size, self.dtype, self.device, shared)

    def new_host_kv(self, num_blocks: int, block_size: int) -> KVPool:
        """In host memory, wherever the model is."""
        return KVPool(self.spec, num_blocks, block_size, self.dtype, "cpu")

    def set_threads(self, num_threads: int) -> None:
        """Threads that torch computes with, in this whole process."""
        torch.set_num_threads(num_threads)

    def set_probes(self, embeddings_Pd: NDArray[np.float32]) -> None:
        """What negative tokens stand for from the next step on. Raises InvariantError for another width."""
        probes = torch.from_numpy(as_probes(embeddings_Pd, self.spec))
        self.weights.probes = probes.to(self.device, self.dtype)

    def close(self) -> None:
        """Nothing to end: torch's threads are the process's own."""

    def warm_up(self) -> None:
        """One forward of a few rows, so that the first request does not pay for lazy set-up."""
        self.forward(Rows.of_text(np.zeros(4, np.int64), 4), self.new_kv(1, 4))

    def logits(self, rows: Rows, kv: KVPool, plan: LayerPlan | None = None) -> NDArray[np.float32]:
        """As `forward`, on the host."""
        return self.forward(rows, kv, plan).cpu().numpy()

    @torch.inference_mode()
    def forward(self, rows: Rows, kv: KVPool, plan: LayerPlan | None = None) -> Tensor:
        """Write the rows' keys and values and return the logits of the scored ones, float32 [N, V].

        plan: of the layers; with one, `hidden` is not asked.
        """
        hidden_Rd = self.hidden(rows, kv) if plan is None else self._layer_by_layer(rows, kv, plan)
        return self.score(rows, hidden_Rd[torch.from_numpy(rows.scored).to(self.device)])

    @torch.inference_mode()
    def states(self, rows: Rows, kv: KVPool) -> NDArray[np.float32]:
        """The hidden states of the scored rows behind the last norm, float32 [N, d]. From any thread."""
        compute = self._layer_by_layer if self.chains is None else self.chains.states
        states_Nd = compute(rows, kv)[torch.from_numpy(rows.scored).to(self.device)]
        return np.asarray(states_Nd.float().cpu().numpy())

    def _layer_by_layer(self, rows: Rows, kv: KVPool, plan: LayerPlan | None = None) -> Tensor:
        tokens_R = torch.from_numpy(rows.tokens).to(self.device)
        positions_R = torch.from_numpy(rows.positions).to(self.device)
        adapt = adapt_rows(self.adapters.of(rows.models), torch.from_numpy(rows.seqs).to(self.device))
        attend = paged(self.spec, rows, kv, self.device)
        return forward(self.weights, self.spec, tokens_R, positions_R, attend, adapt, self.routed, plan)


def paged(spec: ModelSpec, rows: Rows, kv: KVPool, device: str) -> Attend:
    """Attention of a step's rows: their keys and values are written, then read with all others they see."""
    slots_R = torch.from_numpy(rows.slots).to(device)
    groups = plan_groups(rows, kv.block_size, device, windows=bool(spec.windowed))

    def attend(layer: int, q_RHD: Tensor, k_RGD: Tensor, v_RGD: Tensor) -> Tensor:
        keys_TGD, values_TGD = kv.keys_LTGD[layer], kv.values_LTGD[layer]
        keys_TGD.index_copy_(0, slots_R, k_RGD)
        values_TGD.index_copy_(0, slots_R, v_RGD)
        return paged_attention(q_RHD, keys_TGD, values_TGD, groups, spec.window(layer))

    return attend


def open_model(folder: Path, *, dtype: str, device: str, progress: Progress | None) -> Model:
    """Load a Hugging Face folder or a GGUF file. Raises CheckpointError, RangeError for an unknown dtype."""
    if dtype not in DTYPES:
        raise RangeError(f"dtype is {dtype!r}", expected=", ".join(DTYPES))
    spec = read_spec(folder)
    checkpoint = open_checkpoint(folder, progress)

    def get(name: str, shape: tuple[int, ...]) -> Tensor:
        return checkpoint.get(name, shape).to(device=device, dtype=DTYPES[dtype])

    weights = from_checkpoint(spec, get)
    checkpoint.check_all_read()
    if progress is not None:
        progress("read", checkpoint.total_bytes, checkpoint.total_bytes)
    generation = read_json(folder, "generation_config.json", optional=True)
    return Model(spec, weights, Tokenizer(folder), generation, device)
