"""Write a checkpoint of `shapes.py` as GGUF: `python export_gguf.py FOLDER FILE F32|BF16|Q8_0|Q4_0`.

Run by an environment with `gguf`, numpy and llama_cpp. llama.cpp turns neighbouring numbers of a head where
Hugging Face turns number i with number i + head_size / 2, so the rows of Q and K are permuted here. The
quantised types go through llama.cpp's own quantiser, which keeps the head at Q6_K for Q4_0.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import gguf
import numpy as np

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def read_bfloat16(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a bfloat16 safetensors file as float32."""
    data = np.memmap(file, np.uint8, mode="r")
    (length,) = struct.unpack("<Q", data[:8].tobytes())
    header = json.loads(data[8 : 8 + length].tobytes())
    found = {}
    for name, info in header.items():
        if name != "__metadata__":
            begin, end = (8 + length + o for o in info["data_offsets"])
            halves = data[begin:end].view(np.uint16).astype(np.uint32)
            found[name] = (halves << 16).view(np.float32).reshape(info["shape"])
    return found


def renamed(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in TOP:
        return TOP[stem] + ".weight"
    layer, _, part = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{NAMES[part]}.weight"


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head reordered from (half, pair) to (pair, half)."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_header(writer: gguf.GGUFWriter, config: dict, tokenizer: dict) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    special = {t["id"] for t in tokenizer["added_tokens"]}
    tokens = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in tokens])
    writer.add_token_types([3 if i in special else 1 for _, i in tokens])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


def write(folder: Path, file: Path, kind: str) -> None:
    """Write F32 or BF16."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if kind == "F32" else gguf.LlamaFileType.MOSTLY_BF16)
    write_header(writer, config, tokenizer)
    matrix_type = gguf.GGMLQuantizationType[kind]
    for name, weight in read_bfloat16(folder / "model.safetensors").items():
        if ".q_proj" in name or ".k_proj" in name:
            heads = config["num_attention_heads" if ".q_proj" in name else "num_key_value_heads"]
            weight = interleaved(weight, heads)
        stored = matrix_type if weight.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(
            renamed(name), gguf.quants.quantize(np.ascontiguousarray(weight), stored), raw_dtype=stored
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantise(source: Path, file: Path, kind: str) -> None:
    """llama.cpp's own quantiser, from F32. Raises RuntimeError if it fails."""
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = {"Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}[
        kind
    ]
    settings.nthread = 2
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(file).encode(), settings)
    if code:
        raise RuntimeError(f"llama_model_quantize returned {code} for {source}")


def main() -> None:
    folder, file, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    if kind in ("F32", "BF16"):
        write(folder, file, kind)
        return
    source = file.with_suffix(".f32")
    write(folder, source, "F32")
    try:
        quantise(source, file, kind)
    finally:
        source.unlink()


if __name__ == "__main__":
    main()
