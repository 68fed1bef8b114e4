"""A checkpoint with 8-bit linear layers as vLLM reads them: the `compressed-tensors` layout, in Hugging Face
folders. Weights are int8 with one scale per row, activations int8 with one scale per token, found as it runs;
the embedding and the head stay bfloat16.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

WIDTH = {"num_bits": 8, "type": "int", "symmetric": True}
SCHEME = {
    "targets": ["Linear"],
    "weights": {**WIDTH, "strategy": "channel", "dynamic": False},
    "input_activations": {**WIDTH, "strategy": "token", "dynamic": True},
}
QUANTIZATION = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "config_groups": {"group_0": SCHEME},
    "ignore": ["lm_head"],
}


def write_int8(source: Path, target: Path) -> None:
    """Quantise the checkpoint in source to nearest; target gets its tokenizer too."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = {}
    for name, weight in load_file(source / "model.safetensors").items():
        if "_proj" not in name:
            tensors[name] = weight
            continue
        rows = weight.float()
        scales = rows.abs().amax(1, keepdim=True) / 127
        tensors[name] = (rows / scales).round().to(torch.int8)
        tensors[f"{name}_scale"] = scales.to(torch.bfloat16)
    target.mkdir(parents=True)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / file, target / file)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = QUANTIZATION
    (target / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
