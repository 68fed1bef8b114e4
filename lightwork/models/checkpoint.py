"""The tensors of a model: of a folder in Hugging Face layout (safetensors, never pickle), or of a GGUF file.

Both are memory-mapped, and both name tensors as Hugging Face does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safetensors import SafetensorError, safe_open

from lightwork.errors import CheckpointError
from lightwork.home import save
from lightwork.models.codes import Codes
from lightwork.models.gptq import PARTS, Packing, unpack
from lightwork.models.spec import read_json
from lightwork.runtime.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor


STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
UNUSED = ("lm_head.weight", "rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
"""Tensors that checkpoints hold beside the weights: the copy of a tied head, tables that we compute."""


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """As safetensors. Raises LightworkError if there is no room, or no way to write; what was there stays."""
    from safetensors.torch import save_file

    def write(part: Path) -> None:
        try:
            save_file({**tensors}, part, metadata={"format": "pt"})
        except SafetensorError as error:  # it comes from the file: the tensors are ours
            raise OSError(str(error)) from error

    save(file, write)


class Source(Protocol):
    """Where a model's tensors come from. Every method raises CheckpointError."""

    total_bytes: int

    @property
    def files(self) -> list[Path]:
        """What the checkpoint consists of."""
        ...

    def stored(self) -> str:
        """The type that its embedding is read in: float32, bfloat16 or float16."""
        ...

    def get(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor by name; a quantised one in float32."""
        ...

    def codes(self, name: str, shape: tuple[int, ...]) -> Codes | None:
        """A matrix [N, K] in the quantised form it is stored in, or None if it is stored in full."""
        ...

    def skip(self, name: str) -> None:
        """Leave a tensor to somebody else, who has a place for it."""
        ...

    def check_all_read(self) -> None:
        """Refuses weights that the model has no place for."""
        ...


def open_checkpoint(path: Path, progress: Progress | None = None) -> Source:
    """The tensors of a model folder or a GGUF file."""
    if path.is_file():
        from lightwork.models.gguf.checkpoint import GGUFCheckpoint

        return GGUFCheckpoint(path, progress)
    return Checkpoint(path, progress)


class Reading:
    """Which tensors have been read, and how many bytes, told to `progress`."""

    def __init__(self, total_bytes: int, progress: Progress | None) -> None:
        self.names: set[str] = set()
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._progress = progress

    def add(self, name: str, nbytes: int) -> None:
        self.names.add(name)
        self._done_bytes += nbytes
        if self._progress is not None:
            self._progress("read", min(self._done_bytes, self._total_bytes), self._total_bytes)


class Checkpoint:
    """The tensors of a folder, read when asked for. Shards are opened once and stay memory-mapped."""

    def __init__(self, folder: Path, progress: Progress | None = None) -> None:
        self.folder = folder
        self._where = self._index()
        self._open: dict[str, Any] = {}
        self.total_bytes = sum((folder / f).stat().st_size for f in set(self._where.values()))
        self._reading = Reading(self.total_bytes, progress)
        config = read_json(folder, "config.json", optional=True)
        self._packing = Packing.of(config.get("quantization_config"))

    def check_all_read(self) -> None:
        """Raises CheckpointError if the files hold weights that the model has no place for."""
        unread = self._where.keys() - self._reading.names
        left = sorted(n for n in unread if not n.endswith(UNUSED) and not self._is_padding(n))
        if left:
            raise CheckpointError(
                f"{self.folder} holds {len(left)} tensors that config.json has no place for: {left[0]}",
                expected="the tensors of config.json's model and no others",
                fix="use the config.json that belongs to these weights",
            )

    def get(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor by name; float32 if packed. Raises CheckpointError: missing, misshapen or cut off."""
        codes = self.codes(name, shape) if len(shape) == 2 else None
        if codes is not None:
            import torch

            return torch.from_numpy(codes.dequantised())
        if name not in self._where:  # the published GPT-2 names its tensors without the prefix
            name = name.removeprefix("transformer.")
        tensor = self._tensor(name)
        if tuple(tensor.shape) != shape:
            raise misshapen(name, tuple(tensor.shape), shape, "config.json")
        return tensor

    def skip(self, name: str) -> None:
        """A tensor that is not wanted here."""
        stem = name.removesuffix(".weight")
        self._reading.names |= {name, name.removeprefix("transformer."), *(f"{stem}.{p}" for p in PARTS)}

    def codes(self, name: str, shape: tuple[int, ...]) -> Codes | None:
        """A matrix in quantised form, or None if it is stored in full. Raises CheckpointError."""
        stem = name.removesuffix(".weight")
        if self._packing is None or name in self._where or f"{stem}.qweight" not in self._where:
            return None
        parts = {p: self._tensor(f"{stem}.{p}") for p in PARTS if f"{stem}.{p}" in self._where}
        arrays = {p: (t.float() if t.is_floating_point() else t).numpy() for p, t in parts.items()}
        return unpack(self._packing, stem, arrays, (shape[0], shape[1]))

    @property
    def files(self) -> list[Path]:
        """What the checkpoint consists of."""
        return [self.folder / name for name in sorted(set(self._where.values()))]

    def stored(self) -> str:
        """The type of its matrices: float32, bfloat16 or float16; float32 if they differ.

        Raises CheckpointError for others, and if a file is cut off.
        """
        codes: set[str] = set()
        for shard in sorted(set(self._where.values())):
            try:
                with safe_open(self.folder / shard, framework="np") as file:
                    slices = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118, not a dict
                    codes |= {str(s.get_dtype()) for s in slices if len(s.get_shape()) > 1}
            except (SafetensorError, OSError, ValueError) as error:
                raise _broken(self.folder / shard, error) from error
        types = {STORED[code] for code in codes if code in STORED}
        if not types:
            raise CheckpointError(
                f"{self.folder} holds matrices of {', '.join(sorted(codes)) or 'no'} type",
                expected=", ".join(STORED),
                fix="copy it again, or convert it",
            )
        return types.pop() if len(types) == 1 else "float32"

    def _is_padding(self, name: str) -> bool:
        """A bias of zeros beside a packed matrix: packers write one for layers that have none."""
        stem = name.removesuffix(".bias")
        return stem != name and f"{stem}.qweight" in self._where and not bool(self._tensor(name).any())

    def _tensor(self, name: str) -> Tensor:
        shard = self._where.get(name)
        if shard is None:
            raise CheckpointError(
                f"{self.folder} has no tensor {name}",
                expected="all tensors of config.json's model",
                fix="copy it again",
            )
        try:
            tensor: Tensor = self._shard(shard).get_tensor(name)
        except (SafetensorError, OSError, ValueError) as error:
            raise _broken(self.folder / shard, error) from error
        self._reading.add(name, tensor.nbytes)
        return tensor

    def _shard(self, name: str) -> Any:
        if name not in self._open:
            self._open[name] = safe_open(self.folder / name, framework="pt")
        return self._open[name]

    def _index(self) -> dict[str, str]:
        """Which file holds each tensor."""
        if (self.folder / "model.safetensors.index.json").is_file():
            index = read_json(self.folder, "model.safetensors.index.json").get("weight_map")
            if not isinstance(index, dict):
                raise CheckpointError(
                    f"{self.folder}/model.safetensors.index.json has no weight_map",
                    expected="one",
                    fix="copy it again",
                )
            where = {str(k): str(v) for k, v in index.items()}
            for shard in sorted(set(where.values())):
                self._check_present(shard)
            return where
        if not (self.folder / "model.safetensors").is_file():
            raise self._nothing_to_load()
        try:
            with safe_open(self.folder / "model.safetensors", framework="np") as file:
                return dict.fromkeys(file.keys(), "model.safetensors")
        except (SafetensorError, OSError, ValueError) as error:
            raise _broken(self.folder / "model.safetensors", error) from error

    def _check_present(self, shard: str) -> None:
        if Path(shard).name != shard or not (self.folder / shard).is_file():
            raise CheckpointError(
                f"{self.folder} lacks the shard {shard}",
                expected="every file of its index",
                fix="copy the missing file",
            )

    def _nothing_to_load(self) -> CheckpointError:
        pickles = sorted(p.name for p in self.folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".pkl"))
        if pickles:
            return CheckpointError(
                f"{self.folder} holds only pickle files ({', '.join(pickles[:3])}), and those can run code",
                expected="safetensors",
                fix="convert it with transformers: from_pretrained, then save_pretrained",
            )
        return CheckpointError(
            f"{self.folder} holds no weights", expected="model.safetensors", fix="check the path"
        )


def misshapen(name: str, found: tuple[int, ...], wanted: tuple[int, ...], source: str) -> CheckpointError:
    """The error for a tensor whose shape is not what source says."""
    return CheckpointError(
        f"{name} has shape {found}", expected=f"{wanted}, from {source}", fix="match the two"
    )


def _broken(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is cut off or damaged: {error}", expected="a whole safetensors file", fix="copy it again"
    )
