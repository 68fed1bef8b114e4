"""GGUF files (the format of llama.cpp): one memory-mapped file with shape, tokenizer and weights.

container.py   header, metadata and the place of each tensor; no byte of the file is trusted
blocks.py      the block formats Q8_0, Q4_0, Q4_K and Q6_K, read into `Codes` and written
shape.py       `ModelSpec` from metadata, and tensor names
checkpoint.py  `GGUFCheckpoint`: tensors under their Hugging Face names
vocabulary.py  tokenizer and chat template from metadata
export.py      `write_gguf`: a Hugging Face folder as a GGUF file

Source: the GGUF specification and the block layouts of ggml, as their projects document them.
"""
