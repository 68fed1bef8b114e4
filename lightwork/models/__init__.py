"""Transformer families behind one shape description and one forward pass.

spec.py         `ModelSpec`: the shape of a model, from config.json or a preset
transformer.py  `forward(weights, spec, tokens, positions, attend)`: all families, training and serving
compiled.py     the same in one compiled call on a CPU, from packed.py's bytes
blocks.py       blocks of those bytes that are read into slots, where they are not all in memory
layer_plan.py   which layers' attentions go together
precisions/     in which numbers that is stored and computed
adapters/       small changes to a model's matrices, which each request chooses (LoRA)
adapter_set.py  those of a model by name and version; peft.py: on disk; adapted.py, adapted_step.py: in
                torch's forward and in the compiled step
experts.py      several checkpoints of one shape, and the memory that some are copied into
zoo.py          fine-tunes cut into blocks, each kept once; equivalence.py: which may stand in for which
chains.py       models that share blocks, computed together; stitching.py: blocks of unequal width joined
speculation.py  layers that start on a guess of what those before them will give
duo.py          MLPs that are big, small or left out as each token's routing says; duo_oracle.py: the best
                routing of a token; duo_router.py: gates that choose one
routing.py      which experts rows take: traces, and how experts of neighbouring layers hang together
mixture.py      a forward whose experts may be elsewhere, skipped or watched; skips/: kind: which are skipped
compressions/   kind: experts made fewer, or smaller
tiles.py        rows computed so many at a time, so that their bits do not depend on how many there are
gpu_step.py     the same for dense Llama-like models on Triton's kernels, with CUDA graphs
parts.py        which tensors of a checkpoint each weight is made of
weights.py      fused weights
seq2seq.py      encoder and decoder in mBART's layout; encoder_decoder.py: the two as the engine runs them;
                block_filler.py: masks filled all at once
slices.py       a part of a model: some layers, and of each a tensor-parallel rank's share; stage.py runs it;
                split.py: as a file that is read block by block
checkpoint.py   tensors by name: of Hugging Face folders (sharded safetensors), memory-mapped
gguf/           tensors, shape and tokenizer of GGUF files
convert.py      matrices of checkpoints as the numbers or codes of a format
gptq.py         GPTQ and AWQ matrices of such folders
codes.py        `Codes`: the one form that quantised matrices are handed on in
arena.py        memory for keys and values, a process's own or shared
pooling.py      one vector of a text from its tokens' hidden states
work.py         counted work of a forward, for the cost model
prompt_tokens.py  embeddings that are no tokens' and ask for the next but one, on disk
tokenizer.py    text to tokens and back, chat templates, streaming

To add a family: its architecture in spec.py, its tensor names in parts.py, and a line in the parity test.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from lightwork.errors import CheckpointError, MissingExtraError, SpecError

if TYPE_CHECKING:
    from lightwork.models.compiled import Arrive, CompiledModel
    from lightwork.models.encoder_decoder import EncoderDecoder
    from lightwork.models.model import Model
    from lightwork.models.precisions import Precision
    from lightwork.models.spec import ModelSpec
    from lightwork.runtime.progress import Progress

__all__ = [
    "Model",
    "compiles",
    "import_models",
    "load",
    "load_compiled",
    "load_seq2seq",
    "read_shape",
    "resolve",
]

BUILTIN = Path(__file__).parent / "builtin"


def resolve(uri: str) -> Path:
    """The folder or file that a model URI names: `tiny:llama` (built in), `hf:./folder`, a folder, or a GGUF
    file as `gguf:./file.gguf` or by its name.

    Raises SpecError for an unknown built-in model, CheckpointError if there is no such folder or file.
    """
    scheme, _, rest = uri.partition(":")
    if scheme == "tiny":
        known = sorted(p.name for p in BUILTIN.iterdir() if (p / "config.json").is_file())
        if rest not in known:
            raise SpecError(
                f"no built-in model is called {rest!r}",
                expected=", ".join(f"tiny:{k}" for k in known),
                fix="tiny:llama",
            )
        return BUILTIN / rest
    folder = Path(rest if scheme in ("hf", "gguf") else uri).expanduser()
    if scheme == "gguf" or folder.suffix == ".gguf":
        return _gguf_file(folder)
    if not folder.is_dir():
        raise CheckpointError(
            f"there is no folder {folder}",
            expected="tiny:llama, hf:FOLDER, a folder, or gguf:FILE",
            fix="check the path",
        )
    return folder


def _gguf_file(file: Path) -> Path:
    if not file.is_file():
        raise CheckpointError(f"there is no file {file}", expected="gguf:FILE", fix="check the path")
    return file


def read_shape(uri: str) -> ModelSpec:
    """The shape of a model without its weights: of any model URI, or `shape:llama-3-70b`.

    Raises SpecError, CheckpointError.
    """
    from lightwork.models.presets import preset
    from lightwork.models.spec import read_spec

    scheme, _, name = uri.partition(":")
    return preset(name) if scheme == "shape" else read_spec(resolve(uri))


def load(uri: str, *, dtype: str = "float32", device: str = "cpu", progress: Progress | None = None) -> Model:
    """Load a model with its tokenizer. progress(phase, bytes done, bytes in all) is called along the way.

    Raises CheckpointError, SpecError; MissingExtraError without torch.
    """
    folder = resolve(uri)
    import_models()
    from lightwork.models.model import open_model

    return open_model(folder, dtype=dtype, device=device, progress=progress)


def load_seq2seq(uri: str, *, dtype: str = "float32") -> EncoderDecoder:
    """Load an encoder-decoder with its tokenizer, for torch on a CPU.

    Raises CheckpointError, SpecError; MissingExtraError without torch.
    """
    folder = resolve(uri)
    import_models()
    from lightwork.models.encoder_decoder import open_seq2seq

    return open_seq2seq(folder, dtype)


def load_compiled(
    uri: str, *, precision: Precision, progress: Progress | None = None, arrive: Arrive | None = None
) -> CompiledModel:
    """Load a model for the compiled CPU step, its weights stored as `precision` says.

    Packed weights are kept between runs, so that only the first start converts (and needs torch).
    progress(phase, bytes done, bytes in all) is called along the way. arrive: how weights come that are not
    all to be in memory (`memory.streamed_weights`). Raises CheckpointError, SpecError; MissingExtraError
    without numba, or without torch when weights must be converted.
    """
    folder = resolve(uri)
    try:
        from lightwork.models.compiled import open_compiled

        return open_compiled(folder, precision, progress, arrive)
    except ModuleNotFoundError as error:
        if error.name not in ("numba", "llvmlite"):
            raise
        raise MissingExtraError("numba", "cpu") from error


def compiles(place: str) -> bool:
    """Whether a place computes with the compiled CPU step, rather than with torch."""
    return place == "cpu" and find_spec("numba") is not None


def import_models() -> None:
    """Import torch and what stands on it, the slow part of a start. Raises MissingExtraError."""
    try:
        import lightwork.models.model  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtraError("torch", "torch") from error


def __getattr__(name: str) -> object:
    if name == "Model":
        from lightwork.models.model import Model

        return Model
    raise AttributeError(name)
