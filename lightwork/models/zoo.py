"""A zoo: fine-tunes as chains of blocks, each block kept once (BlockLLM).

A checkpoint is cut into its embedding, the attention and the MLP of each layer (each with its norm), and its
head. A block is named by a hash of its kind, its place and its bytes, so equal blocks of different fine-tunes
are one. An adapter is a block of its own at the end of a chain, a stitch joins blocks of unequal width.

    FOLDER/zoo.json                   blocks, chains by application, edges between equivalent blocks
    FOLDER/blocks/ID.safetensors      the tensors of a block, fused as the forward pass wants them
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightwork.errors import CheckpointError, SpecError
from lightwork.home import keep
from lightwork.models.adapters import Adapter
from lightwork.models.checkpoint import open_checkpoint
from lightwork.models.parts import Part, each_part
from lightwork.models.peft import CONFIG, read_adapter
from lightwork.models.spec import ModelSpec, read_json, read_spec
from lightwork.models.weights import joined

FILE = "zoo.json"
MLP = {"norm2", "norm2_bias", "router", "up", "up_bias", "down", "down_bias"}
_ID = re.compile(r"[0-9a-f]{24}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """kind: embedding, attention, mlp, head, adapter or stitch. layer: -1 outside of layers; of a stitch, the
    layer behind it. width_in, width_out: numbers of a row. shape: of the model that it is of.
    """

    kind: str
    layer: int
    width_in: int
    width_out: int
    nbytes: int
    shape: str

    @property
    def place(self) -> tuple[str, int]:
        return self.kind, self.layer


@dataclass(frozen=True, slots=True)
class Edge:
    """Two blocks of one place that may stand in for each other, as probes found: the cosine of the models'
    probabilities, and the share of positions whose greedy token stays."""

    a: str
    b: str
    similarity: float
    agreement: float


class Zoo:
    """The zoo in a folder, an empty one where there is none yet.

    frozen: the folder stays as it is, and what is added is held in memory, as all is without a folder. Raises
    CheckpointError for a damaged one.
    """

    def __init__(self, folder: Path | None = None, *, frozen: bool = False) -> None:
        self.folder = folder
        self._frozen = frozen or folder is None
        self._held: dict[str, dict[str, Tensor]] = {}
        kept = read_json(folder, FILE, optional=True) if folder is not None and folder.is_dir() else {}
        try:
            self._configs: dict[str, dict[str, Any]] = dict(kept.get("shapes", {}))
            self.blocks = {str(i): Block(**b) for i, b in kept.get("blocks", {}).items()}
            self._chains = {str(n): tuple(map(str, c)) for n, c in kept.get("applications", {}).items()}
            self.edges = [Edge(*edge) for edge in kept.get("edges", [])]
            named = {i for chain in self._chains.values() for i in chain}
            if not named <= self.blocks.keys() or not all(map(_ID.fullmatch, self.blocks)):
                raise ValueError("names without blocks")
        except (TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{FILE} of {folder} is garbled: {error}",
                expected="what Zoo.add writes",
                fix="build it again",
            ) from error

    @property
    def applications(self) -> list[str]:
        """By name, in the order they came."""
        return [*self._chains]

    def chain(self, name: str) -> tuple[str, ...]:
        """The ids of an application's blocks, in the order of the forward pass. Raises SpecError."""
        if name not in self._chains:
            raise SpecError(
                f"no application is called {name!r}",
                expected=", ".join(self._chains) or "one that was added",
                fix="Zoo.add",
            )
        return self._chains[name]

    @property
    def nbytes(self) -> int:
        """Of all blocks, each once."""
        return sum(block.nbytes for block in self.blocks.values())

    def spec(self, chain: Sequence[str]) -> ModelSpec:
        """The shape of a chain's model; of one with stitches, the widest."""
        return max((self._spec(self.blocks[i].shape) for i in chain), key=lambda spec: spec.hidden_size)

    def add(self, name: str, folder: Path, *, base: str = "") -> tuple[str, ...]:
        """Cut a model folder into blocks and register its chain; or a PEFT adapter's behind those of its
        base.

        Raises SpecError for names, CheckpointError for what cannot be read.
        """
        self._check_name(name)
        if (folder / CONFIG).is_file():
            chain = self.chain(base)
            if odd := {self.blocks[i].kind for i in chain} & {"adapter", "stitch"}:
                raise SpecError(
                    f"the base of {name} has a block of kind {min(odd)}",
                    expected="a base as it was added",
                    fix="another base",
                )
            adapter = read_adapter(folder, self.spec(chain))
            shape = self.blocks[chain[0]].shape
            chain = (*chain, self.keep("adapter", -1, tensors_of(adapter), shape))
        else:
            chain = self.cut(folder)
        self.register(name, chain)
        return chain

    def register(self, name: str, chain: Sequence[str]) -> None:
        """Name a chain of blocks that are here. Raises SpecError if it is none that can be computed."""
        self._check_name(name)
        self._check_chain(name, chain)
        self._chains[name] = tuple(chain)
        self.save()

    def keep(self, kind: str, layer: int, tensors: Mapping[str, Tensor], shape: str) -> str:
        """Store a block unless its equal is here; returns its id. shape: of the model that reads it."""
        whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        block, width = _hash(f"{kind} {layer} {shape}", whole), self._spec(shape).hidden_size
        if block not in self.blocks:
            if self._frozen:
                self._held[block] = whole
            else:
                keep(self._file(block), lambda part: save_file(whole, part))
            self.blocks[block] = Block(
                kind=kind,
                layer=layer,
                width_in=whole["stitch"].shape[1] if kind == "stitch" else width,
                width_out=width,
                nbytes=sum(tensor.nbytes for tensor in whole.values()),
                shape=shape,
            )
        return block

    def save(self) -> None:
        if self._frozen or self.folder is None:
            return
        text = json.dumps(
            {
                "shapes": self._configs,
                "blocks": {i: asdict(block) for i, block in self.blocks.items()},
                "applications": self._chains,
                "edges": [[e.a, e.b, e.similarity, e.agreement] for e in self.edges],
            },
            indent=1,
        )
        keep(self.folder / FILE, lambda part: part.write_text(text + "\n", encoding="utf-8"))

    def tensors(self, block: str) -> dict[str, Tensor]:
        """By their fields in `Layer` or `Weights`; of an adapter by module, as `tensors_of` names them."""
        if block in self._held:
            return self._held[block]
        try:
            return load_file(self._file(block))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"block {block} is missing or damaged: {error}", expected="a whole file", fix="build it again"
            ) from error

    def _file(self, block: str) -> Path:
        assert self.folder is not None
        return self.folder / "blocks" / f"{block}.safetensors"

    def _spec(self, shape: str) -> ModelSpec:
        return ModelSpec.from_config(self._configs[shape])

    def _check_name(self, name: str) -> None:
        if name in self._chains:
            raise SpecError(
                f"an application called {name!r}", expected="a name that is not taken", fix="another name"
            )

    def _check_chain(self, name: str, chain: Sequence[str]) -> None:
        if unknown := [i for i in chain if i not in self.blocks]:
            raise SpecError(f"{name} names block {unknown[0]}", expected="blocks of this zoo", fix="Zoo.add")
        if twice := [i for i in chain if chain.count(i) > 1]:
            raise SpecError(
                f"the chain of {name} comes back to block {twice[0]}",
                expected="each block once",
                fix="Zoo.chain",
            )
        blocks = [self.blocks[i] for i in chain if self.blocks[i].kind != "adapter"]
        for a, b in pairwise(blocks):
            if a.width_out != b.width_in:
                raise SpecError(
                    f"{name}: {b.kind} {b.layer} reads {b.width_in} numbers behind {a.kind} {a.layer}",
                    expected=f"equal widths, here {a.width_out}",
                    fix="blocks of one base, or a stitch between them",
                )
        borrowed = bool(blocks) and blocks[0].shape != blocks[-1].shape  # of the head the embedding, if tied
        if borrowed and self._spec(blocks[-1].shape).tied and "head" not in self.tensors(chain[-1]):
            raise SpecError(
                f"the head of {name} is the embedding of another model",
                expected="a head with a matrix of its own",
                fix="lightwork.models.stitching.stitch",
            )
        specs = {shared_shape(self._spec(block.shape)) for block in blocks}
        places = [block.place for block in blocks if block.kind != "stitch"]
        if len(specs) != 1 or places != [*dict.fromkeys(map(_place, each_part(specs.pop())))]:
            raise SpecError(
                f"the chain of {name} is no model: {len(places)} blocks",
                expected="an embedding, each layer's attention and MLP, a head, of one shape but for widths",
                fix="Zoo.chain",
            )

    def cut(self, checkpoint: Path) -> tuple[str, ...]:
        """The blocks of a model folder, kept without a name. Raises CheckpointError."""
        return tuple(self._cut(checkpoint))

    def _cut(self, checkpoint: Path) -> Iterator[str]:
        config = read_json(checkpoint, "config.json")
        spec, source = read_spec(checkpoint), open_checkpoint(checkpoint)
        plain = json.dumps(asdict(replace(spec, name="")), sort_keys=True, default=sorted)
        shape = hashlib.sha256(plain.encode()).hexdigest()[:24]
        self._configs.setdefault(shape, config)
        for place, parts in groupby(each_part(spec), _place):
            own = [part for part in parts if not (part.name == "head" and spec.tied)]
            yield self.keep(*place, {part.name: joined(spec, part, source.get) for part in own}, shape)
        source.check_all_read()


def gather(base: Path, folders: Mapping[str, Path]) -> tuple[Zoo, dict[str, tuple[str, ...]]]:
    """A model and fine-tunes of it by name, from the zoo that all of these are in or from a folder each.

    The model is called "". Raises CheckpointError.
    """
    tops = {*folders.values()}
    kept = next((top for top in tops if (top / FILE).is_file()), None)
    zoo = Zoo(kept, frozen=True)
    if kept is None:
        zoo.add("", base)
        for name, folder in folders.items():
            zoo.add(name, folder)
    return zoo, {"": zoo.cut(base)} | {name: zoo.chain(name) for name in folders}


def shared_shape(spec: ModelSpec) -> ModelSpec:
    """What models must agree in to be computed together: all but widths."""
    return replace(spec, name="", hidden_size=0, ffn_size=0, dense_ffn_size=0)


def tensors_of(adapter: Adapter) -> dict[str, Tensor]:
    """A and scaled B of every module that an adapter changes."""
    pairs = ((path, {"a": d.a, "b": d.scale * d.b}) for path, d in adapter.deltas.items())
    return {f"{path}.{side}": torch.from_numpy(x) for path, pair in pairs for side, x in pair.items()}


def _place(part: Part) -> tuple[str, int]:
    if part.layer >= 0:
        return ("mlp" if part.name in MLP else "attention"), part.layer
    return ("embedding" if part.name in ("embed", "positions") else "head"), -1


def _hash(place: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(place.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:24]
