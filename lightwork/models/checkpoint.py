"""A model folder in Hugging Face layout: config.json and safetensors, memory-mapped, never pickle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from lightwork.errors import CheckpointError
from lightwork.models.spec import read_json

if TYPE_CHECKING:
    from torch import Tensor

Progress = Callable[[str, int, int], None]
"""(phase, bytes done, bytes in all)"""


STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
UNUSED = ("lm_head.weight", "rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
"""Tensors that checkpoints hold beside the weights: the copy of a tied head, tables that we compute."""


class Checkpoint:
    """The tensors of a folder, read when asked for. Shards are opened once and stay memory-mapped."""

    def __init__(self, folder: Path, progress: Progress | None = None) -> None:
        self.folder = folder
        self._progress = progress
        self._where = self._index()
        self._open: dict[str, Any] = {}
        self.total_bytes = sum((folder / f).stat().st_size for f in set(self._where.values()))
        self._done_bytes = 0
        self._read: set[str] = set()

    def check_all_read(self) -> None:
        """Raises CheckpointError if the files hold weights that the model has no place for."""
        left = sorted(n for n in self._where if n not in self._read and not n.endswith(UNUSED))
        if left:
            raise CheckpointError(
                f"{self.folder} holds {len(left)} tensors that config.json has no place for: {left[0]}",
                expected="the tensors of config.json's model and no others",
                fix="use the config.json that belongs to these weights",
            )

    def get(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor by name. Raises CheckpointError if it is missing, misshapen or cut off."""
        if name not in self._where:  # the published GPT-2 names its tensors without the prefix
            name = name.removeprefix("transformer.")
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
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{name} has shape {tuple(tensor.shape)}",
                expected=f"{shape}, from config.json",
                fix="match the two",
            )
        self._read.add(name)
        self._done_bytes += tensor.nbytes
        if self._progress is not None:
            self._progress("read", min(self._done_bytes, self.total_bytes), self.total_bytes)
        return tensor

    @property
    def files(self) -> list[Path]:
        """What the checkpoint consists of."""
        return [self.folder / name for name in sorted(set(self._where.values()))]

    def stored(self) -> str:
        """The type of its matrices: float32, bfloat16 or float16.

        Raises CheckpointError for others, and if the embedding, which is asked, is missing or cut off.
        """
        name = next((n for n in self._where if "embed" in n or "wte" in n), None)
        if name is None:
            raise CheckpointError(
                f"{self.folder} has no embedding",
                expected="all tensors of config.json's model",
                fix="copy it again",
            )
        path = self.folder / self._where[name]
        try:
            with safe_open(path, framework="np") as file:
                code = str(file.get_slice(name).get_dtype())
        except (SafetensorError, OSError, ValueError) as error:
            raise _broken(path, error) from error
        if code not in STORED:
            raise CheckpointError(f"{name} is stored as {code}", expected=", ".join(STORED), fix="convert it")
        return STORED[code]

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
            with safe_open(self.folder / "model.safetensors", framework="pt") as file:
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


def _broken(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is cut off or damaged: {error}", expected="a whole safetensors file", fix="copy it again"
    )
