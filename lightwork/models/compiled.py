"""A model on the compiled CPU step: the same forward as `Model`, in one call, without torch.

R rows  N scored rows  d hidden  D head size  G key-value heads  V vocabulary
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import CheckpointError, InvariantError, SpecError
from lightwork.kernels.cpu import entries, formats
from lightwork.kernels.cpu.state import (
    ACTIVATIONS,
    PHASES_PER_LAYER,
    ROW_TILE,
    State,
)
from lightwork.kernels.cpu.team import Team
from lightwork.kernels.rows import Rows
from lightwork.models.adapted_step import AdaptedRows, Placed, place
from lightwork.models.adapter_set import AdapterSet
from lightwork.models.arena import arrays, discard
from lightwork.models.checkpoint import Source
from lightwork.models.layer_plan import LayerPlan
from lightwork.models.packed import Layout, packed_bytes, read_layout
from lightwork.models.precisions import Numbers, Precision
from lightwork.models.prompt_tokens import as_probes
from lightwork.models.spec import ModelSpec, read_json, read_spec
from lightwork.models.step_buffers import Buffers, padded
from lightwork.models.tokenizer import Tokenizer
from lightwork.runtime.progress import Progress

KV_TYPES = {formats.F32: np.float32, formats.BF16_DOT: np.uint16, formats.INT8_DOT: np.int8}
ROWS_AT_ONCE = 2 * ROW_TILE
"""A step of more rows is computed in parts, of whole tiles, so that buffers stay small."""


class Arriving(Protocol):
    """Weights that are not all in memory: they come while a pass runs. arena: what memory they have."""

    @property
    def arena(self) -> NDArray[np.uint8]: ...

    def bind(self, state: State) -> None:
        """Of the model that they are of."""
        ...

    def run(self, compute: Callable[[int, int], object]) -> None:
        """One pass: compute(first block, last block) of `Layout.blocks` for all of them, in order."""
        ...

    def close(self) -> None: ...


Arrive = Callable[[Layout, Source, Progress | None], Arriving]


class CompiledKV:
    """Keys and values of all slots, as the compiled attention reads them. Blocks are pages of 64 slots.

    keys [pages, L, G, D * 64], values [pages, L, G, padded D * 64]: float32, bfloat16 as uint16, or int8
    with a scale per token and head [pages, L, G, 64]. shared: memory to use, see `arrays`.
    """

    def __init__(self, spec: ModelSpec, num_blocks: int, kv_format: int, shared: int | None = None) -> None:
        self.block_size = formats.PAGE
        shape = (num_blocks, spec.num_layers, spec.num_kv_heads)
        scaled = shape if kv_format == formats.INT8_DOT else (1, 1, 1)
        kind: Any = KV_TYPES[kv_format]
        self.num_blocks = num_blocks
        self.keys, self.values, self.key_scales, self.value_scales = arrays(
            [
                ((*shape, spec.head_size * formats.PAGE), kind),
                ((*shape, padded(spec.head_size) * formats.PAGE), kind),
                ((*scaled, formats.PAGE), np.float32),
                ((*scaled, formats.PAGE), np.float32),
            ],
            shared,
        )

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes + self.key_scales.nbytes + self.value_scales.nbytes

    def copy(self, src: Sequence[int], dst: Sequence[int]) -> None:
        """Copy slots, in all layers, one after the other in the order given; whole pages at once."""
        if _whole_pages(src) and _whole_pages(dst):
            self.pull(self, [(src[0] // formats.PAGE, dst[0] // formats.PAGE, len(src) // formats.PAGE)])
            return
        for one, other in zip(src, dst, strict=True):
            for numbers, copied in zip(self._of_slot(one), self._of_slot(other), strict=True):
                copied[:] = numbers

    def pull(self, other: CompiledKV, runs: Sequence[tuple[int, int, int]]) -> None:
        """Copy blocks of another cache, of the same shape but for their number, in all layers.

        runs: (its block, this one's block, how many from there on).
        """
        for mine, theirs in zip(self._arrays(), other._arrays(), strict=True):
            for src, dst, num in runs:
                mine[dst : dst + num] = theirs[src : src + num]

    def discard(self, blocks: range) -> None:
        """Give the memory of blocks that hold nothing back to the system."""
        for numbers in self._arrays():
            discard(numbers[blocks.start : blocks.stop])

    def _arrays(self) -> list[NDArray[Any]]:
        """By blocks; scales only where there are any."""
        scaled = self.keys.dtype == np.int8
        return [self.keys, self.values, *((self.key_scales, self.value_scales) if scaled else ())]

    def _of_slot(self, slot: int) -> Iterator[NDArray[Any]]:
        """All that is kept of a slot, as views. How pages are laid out is said in kernels/cpu/pages.py."""
        page, k = divmod(slot, formats.PAGE)
        pair = 1 if self.keys.dtype == np.float32 else 2
        keys, values = self.keys[page], self.values[page]
        yield keys.reshape(*keys.shape[:2], -1, formats.PAGE, pair)[..., k, :]
        wide = values.shape[2] // (64 * formats.PAGE) * 64 * formats.PAGE
        for part, width in ((values[..., :wide], 64), (values[..., wide:], 16)):
            yield part.reshape(*part.shape[:2], -1, formats.PAGE // pair, width, pair)[
                ..., k // pair, :, k % pair
            ]
        if self.keys.dtype == np.int8:
            yield self.key_scales[page, ..., k]
            yield self.value_scales[page, ..., k]


class CompiledModel:
    """Weights in packed bytes, buffers, and the threads that run steps.

    generation: the checkpoint's generation_config.json. numbers: what it is stored and computed in.
    layout, weights: where weights lie, and their bytes; of weights that are `arriving`, the memory they come
    to. reads_once: whether keys that sequences share are read once; shared_keys: of each sequence of the
    latest call, its first keys that were read for another one anyway. One step runs at a time.
    """

    device = "cpu"
    reads_once = True
    shared_keys: Sequence[int] = ()

    def __init__(
        self,
        layout: Layout,
        weights: NDArray[np.uint8],
        tokenizer: Tokenizer,
        generation: dict[str, Any],
        *,
        numbers: Numbers,
        arriving: Arriving | None = None,
    ) -> None:
        self.spec = layout.spec
        self.layout = layout
        self.weights = weights
        self.tokenizer = tokenizer
        self.generation = generation
        self.numbers = numbers
        self.nbytes = layout.nbytes
        self.adapters: AdapterSet[Placed] = AdapterSet(self.spec, lambda adapter: place(adapter, self.spec))
        self.variants: Mapping[str, str] = self.adapters.variants
        self._state = State()
        self._state.set(**_constants(layout, numbers.kv), **_addresses(layout, weights))
        self.arriving = arriving
        if arriving is not None:
            arriving.bind(self._state)
        self._adapted = AdaptedRows(self.adapters, self._state)
        self._buffers = Buffers(self.spec, layout.form, self._state)
        self._kv: CompiledKV | None = None
        self._one_by_one = LayerPlan.spread(self.spec.num_layers, size=1)
        self._plan: LayerPlan | None = None
        self._team: Team | None = None
        self._one_at_a_time = Lock()
        self.set_threads(os.cpu_count() or 1)

    def compute_from(self, weights: NDArray[np.uint8]) -> None:
        """Use other weights of the same layout from the next step on; they are kept alive, not copied."""
        with self._one_at_a_time:
            self._state.set(**_addresses(self.layout, weights))

    def new_kv(
        self, num_blocks: int, block_size: int = formats.PAGE, *, shared: int | None = None
    ) -> CompiledKV:
        """shared: memory to use, see `arrays`. Raises InvariantError for blocks of another size than the
        kernel's pages."""
        if block_size != formats.PAGE:
            raise InvariantError(f"KV blocks of {block_size} tokens", expected=str(formats.PAGE))
        return CompiledKV(self.spec, num_blocks, self.numbers.kv, shared)

    def new_host_kv(self, num_blocks: int, block_size: int = formats.PAGE) -> CompiledKV:
        """In host memory, as all of it is."""
        return self.new_kv(num_blocks, block_size)

    def set_threads(self, num_threads: int) -> None:
        """Threads that compute a step."""
        self._dismiss()
        with self._one_at_a_time:
            self._team = Team(num_threads, self.spec.num_layers * PHASES_PER_LAYER + 8)
            self._buffers.threads = num_threads
            self._team.employ(entries.run, self._state)

    def share_keys(self, least_chunks: int) -> None:
        """Read keys once that sequences of a step share, from so many chunks of 256 on; 1 if not set."""
        with self._one_at_a_time:
            self._state.set(least_alike=least_chunks)

    def set_probes(self, embeddings_Pd: NDArray[np.float32]) -> None:
        """What negative tokens stand for from the next step on. Raises InvariantError for another width."""
        probes = as_probes(embeddings_Pd, self.spec)
        with self._one_at_a_time:
            self._state.set(probes=probes, num_probes=len(probes))

    def warm_up(self) -> None:
        """Compile the step if it was not kept from an earlier start, and run it once."""
        self.logits(Rows.of_text(np.zeros(4, np.int64), formats.PAGE), self.new_kv(1, formats.PAGE))

    def close(self) -> None:
        """End the helper threads when no step runs; later steps run on the caller's thread alone."""
        self._dismiss()
        if self.arriving is not None:
            self.arriving.close()

    def _dismiss(self) -> None:
        with self._one_at_a_time:
            if self._team is not None:
                self._team.dismiss()
                self._state.set(threads=1)

    def logits(self, rows: Rows, kv: CompiledKV, plan: LayerPlan | None = None) -> NDArray[np.float32]:
        """Write the rows' keys and values and return the logits of the scored ones, [N, V].

        The array is written again by the next call. plan: of the layers; None runs one after another. Raises
        InvariantError for a block, slot, token or position that does not exist, before anything is computed.
        """
        with self._one_at_a_time:
            logits = self._buffers.logits(len(rows.scored))
            self.shared_keys = self._run(rows, kv, plan or self._one_by_one, logits)
            return logits

    def states(self, rows: Rows, kv: CompiledKV) -> NDArray[np.float32]:
        """The hidden states of the scored rows behind the last norm, [N, d]; no logits are computed. From any
        thread: it waits for a step that runs."""
        made, done = np.empty((len(rows.scored), self.spec.hidden_size), np.float32), 0
        with self._one_at_a_time:
            self._use(kv)
            self._arrange(self._one_by_one, rows)
            for part in rows.parts(ROWS_AT_ONCE):
                self._fill(part, kv, None)
                self._pass()
                num = len(part.scored)
                made[done : done + num] = self._state.arrays["mixed"][:num, : self.spec.hidden_size]
                done += num
        return made

    def _run(self, rows: Rows, kv: CompiledKV, plan: LayerPlan, logits: NDArray[np.float32]) -> list[int]:
        """Compute rows, part by part; returns of each sequence the keys that it shared."""
        self._use(kv)
        self._arrange(plan, rows)
        parts = [*rows.parts(ROWS_AT_ONCE)]
        for part in parts:
            self._fill(part, kv, logits)
        done, shared_S = 0, np.zeros(len(rows.known), np.int64)
        for part in parts:
            if len(parts) > 1:
                self._fill(part, kv, logits[done:])
            self._pass()
            done += len(part.scored)
            np.maximum(shared_S, self._buffers.shared_keys(part), out=shared_S)
        return shared_S.tolist()

    def _pass(self) -> None:
        """Compute the rows that the record is filled with."""
        if self.arriving is None:
            entries.run(0, self._state.address)
        else:
            self.arriving.run(self._compute)

    def _compute(self, first: int, last: int) -> None:
        self._state.set(first_block=first, last_block=last)
        entries.run(0, self._state.address)

    def _use(self, kv: CompiledKV) -> None:
        if kv is not self._kv:
            self._kv = kv
            self._state.set(
                blocks=kv.num_blocks,
                keys=kv.keys,
                values=kv.values,
                key_scales=kv.key_scales,
                value_scales=kv.value_scales,
            )

    def _arrange(self, plan: LayerPlan, rows: Rows) -> None:
        """Raises SpecError for a group that the step cannot compute."""
        if plan.most > 1 and any(rows.models):
            raise SpecError(
                "rows with adapters and layers in groups",
                expected="layers one after another: what an adapter adds is computed for one layer at a time",
                fix="leave the plan out",
            )
        if plan.most > 1 and self.arriving is not None:
            raise SpecError(
                "weights that come from disk and layers in groups",
                expected="layers one after another: a group's weights are needed together",
                fix="leave the plan out",
            )
        if plan is self._plan:
            return
        windows = [{self.spec.window(layer) for layer in group} for group in plan.groups]
        if mixed := [group for group, some in zip(plan.groups, windows, strict=True) if len(some) > 1]:
            raise SpecError(
                f"layers {mixed[0]} do not see the same keys: some have a window",
                expected="groups of layers that all have it, or none of which has",
                fix="divide the group",
            )
        self._plan = plan
        self._buffers.together = max(self._buffers.together, plan.most)
        self._state.set(num_groups=len(plan.groups), group_starts=np.array(plan.starts, np.int64))

    def attention_alone(self, rows: Rows, kv: CompiledKV) -> Callable[[], object]:
        """A function that computes the first layer's attention of these rows and nothing else, to measure it.

        Nothing but that function may be called until the model is closed.
        """
        self._use(kv)
        self._fill(rows, kv, self._buffers.logits(len(rows.scored)))
        assert self._team is not None
        self._team.employ(entries.attend_alone, self._state)
        entries.attend_alone(0, self._state.address)
        return lambda: entries.attend_alone(0, self._state.address)

    def _fill(self, rows: Rows, kv: CompiledKV, logits: NDArray[np.float32] | None) -> None:
        self._buffers.fill(rows, logits)
        self._adapted.fill(rows)
        if not entries.all_there(self._state.address):
            self._refuse(rows, kv)

    def _refuse(self, rows: Rows, kv: CompiledKV) -> NoReturn:
        """Say what of the rows does not exist."""
        # A row reads the blocks up to its own: the first that is missing is the end of what it may read.
        ended = np.pad(rows.tables < 0, ((0, 0), (0, 1)), constant_values=True).argmax(1)
        used = np.where((rows.index >= 0) & (rows.index // formats.PAGE < ended[rows.seqs]), 0, -1)
        probes = (rows.tokens < 0) & (rows.tokens >= -int(self._state.record["num_probes"][0]))
        limits: dict[str, tuple[NDArray[Any], int, int]] = {
            "block": (used, rows.tables.max(initial=-1), kv.num_blocks),
            "slot": (rows.slots, rows.slots.max(initial=0), kv.num_blocks * formats.PAGE),
            "token": (np.where(probes, 0, rows.tokens), rows.tokens.max(initial=0), self.spec.vocab_size),
            "position": (rows.positions, rows.positions.max(initial=0), self.spec.max_len),
        }
        for name, (values, most, limit) in limits.items():
            if values.min(initial=0) < 0 or most >= limit:
                raise InvariantError(
                    f"a row's {name} is {values.min(initial=0) if most < limit else most}",
                    expected=f"0 to {limit - 1}",
                )
        raise InvariantError("a row names what does not exist")


def _whole_pages(slots: Sequence[int]) -> bool:
    """Whether these are neighbours that begin and end with a page."""
    begins = isinstance(slots, range) and slots.step == 1 and slots.start % formats.PAGE == 0
    return begins and len(slots) % formats.PAGE == 0 < len(slots)


def _addresses(layout: Layout, weights: NDArray[np.uint8]) -> dict[str, Any]:
    """Where the weights are."""
    return {
        "weights": weights,
        "vectors": weights,
        "embed": weights[layout.embed :],
        "positions": weights.ctypes.data + 4 * layout.positions if layout.positions >= 0 else 0,
    }


def _constants(layout: Layout, kv_format: int) -> dict[str, Any]:
    """The model's part of the record."""
    spec, form = layout.spec, layout.form
    table = np.array(form.table or [i - 8.0 for i in range(16)], np.float32)
    return {
        "eps": spec.norm_eps,
        "embed_half": layout.embed_half,
        "layers": layout.layers,
        "num_layers": spec.num_layers,
        "matrices": np.array(layout.matrices, np.int64),
        "table": table,
        "hidden": spec.hidden_size,
        "heads": spec.num_heads,
        "kv_heads": spec.num_kv_heads,
        "head_size": spec.head_size,
        "padded_head": padded(spec.head_size),
        "vocab": spec.vocab_size,
        "max_len": spec.max_len,
        "experts": spec.num_experts,
        "experts_per_token": max(1, spec.experts_per_token),
        "normalise_gates": spec.normalise_gates,
        "layer_norm": spec.norm == "layer",
        "gated": spec.gated,
        "activation": ACTIVATIONS.index(spec.activation),
        "head": layout.head,
        "norm": layout.norm,
        "norm_bias": layout.norm_bias,
        "format": form.code,
        "kernel": entries.kernel(form.code, affine=form.affine),
        "f32_kernel": entries.kernel(formats.F32) if form.code in (formats.BF16, formats.F16) else 0,
        "affine": form.affine,
        "group": form.group,
        "parts": form.parts,
        "kv_format": kv_format,
        "kv_wide": entries.kernel(kv_format, streamed=False),
        "kv_narrow": entries.kernel(kv_format, vectors=1, streamed=False),
        "least_alike": 1,
        "window": (spec.sliding_window or 0) if spec.windowed else 0,
        "first_block": 0,
        "last_block": len(layout.blocks),
    }


def open_compiled(
    folder: Path, precision: Precision, progress: Progress | None, arrive: Arrive | None = None
) -> CompiledModel:
    """Load a Hugging Face folder or a GGUF file. arrive: how weights come that are not all to be in memory.

    Raises CheckpointError.
    """
    spec = read_spec(folder)
    if spec.activation not in ACTIVATIONS:
        raise CheckpointError(
            f"activation {spec.activation!r} is not supported", expected=", ".join(ACTIVATIONS)
        )
    layout, numbers, checkpoint = read_layout(folder, spec, precision)
    arriving = arrive(layout, checkpoint, progress) if arrive is not None else None
    weights = packed_bytes(layout, checkpoint, progress) if arriving is None else arriving.arena
    generation = read_json(folder, "generation_config.json", optional=True)
    if progress is not None:
        progress("compile", 0, 0)  # half a minute, once for a machine and version
    entries.all_there.prepare()
    entries.run.prepare()
    # A conversion leaves a million objects of torch and numba behind: walking them stops a step for 40 ms.
    gc.collect()
    gc.freeze()
    tokenizer = Tokenizer(folder)
    return CompiledModel(layout, weights, tokenizer, generation, numbers=numbers, arriving=arriving)
