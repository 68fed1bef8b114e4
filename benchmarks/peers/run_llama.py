"""llama.cpp through its batch interface, with continuous batching of our own: llama-cpp-python has none.

Each pass takes one token of every running request first, then pieces of waiting prompts up to the batch size.
The arrays of a batch are numpy views, so that filling 2,048 rows costs microseconds, not milliseconds.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Sequence

import llama_cpp
import numpy as np
from worker import Options, Tokens, run

BATCH = 2048
FLASH_AUTO, FLASH_OFF = -1, 0
TYPE_F32, TYPE_F16 = 0, 1


class Batch:
    """Rows of one llama_decode call."""

    def __init__(self, size: int) -> None:
        self.rows = 0
        self.tokens = np.zeros(size, np.int32)
        self.positions = np.zeros(size, np.int32)
        self.seqs = np.zeros(size, np.int32)
        self.scored = np.zeros(size, np.int8)
        self._ones = np.ones(size, np.int32)
        self._pointers = self.seqs.ctypes.data + 4 * np.arange(size, dtype=np.uint64)
        self.struct = llama_cpp.llama_batch_init(1, 0, 1)
        for name, array in (
            ("token", self.tokens),
            ("pos", self.positions),
            ("seq_id", self._pointers),
            ("n_seq_id", self._ones),
            ("logits", self.scored),
        ):
            kind = dict(llama_cpp.llama_batch._fields_)[name]
            setattr(self.struct, name, ctypes.cast(array.ctypes.data, kind))

    def add(self, seq: int, start: int, tokens: Sequence[int], scored: bool) -> int:
        """Append a run of tokens; returns its last row. scored: the last one's logits are wanted."""
        end = self.rows + len(tokens)
        at = slice(self.rows, end)
        self.tokens[at] = tokens
        self.positions[at] = np.arange(start, start + len(tokens))
        self.seqs[at] = seq
        self.scored[at] = 0
        self.scored[end - 1] = scored
        self.rows = self.struct.n_tokens = end
        return end - 1


class Running:
    """One request. slot: its sequence number in the cache. done: tokens already in the cache."""

    def __init__(self, index: int, slot: int, prompt: Tokens, length: int) -> None:
        self.index, self.slot, self.prompt, self.length = index, slot, prompt, length
        self.done = 0
        self.output: Tokens = []

    def next_piece(self, room: int) -> Sequence[int]:
        return self.output[-1:] if self.output else self.prompt[self.done : self.done + room]


class Llama:
    """One context; requests wait for a free sequence."""

    def __init__(self, options: Options) -> None:
        llama_cpp.llama_backend_init()
        model_settings = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(options.model.encode(), model_settings)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = options.kv_tokens
        settings.n_batch = BATCH
        settings.n_ubatch = 512
        settings.n_seq_max = options.seqs
        settings.n_threads = settings.n_threads_batch = options.threads
        settings.kv_unified = True
        settings.flash_attn_type = FLASH_AUTO
        settings.type_k = settings.type_v = TYPE_F32 if options.weights == "f32" else TYPE_F16
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot open {options.model}")
        self._cache = llama_cpp.llama_get_memory(self._context)
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = Batch(BATCH)
        self._seqs = options.seqs
        self.versions = {"llama-cpp-python": llama_cpp.__version__}

    def generate(self, prompts: Sequence[Tokens], lengths: Sequence[int]) -> list[Tokens]:
        llama_cpp.llama_memory_clear(self._cache, False)
        waiting = deque(enumerate(zip(prompts, lengths, strict=True)))
        slots = list(range(self._seqs))
        running: list[Running] = []
        outputs: list[Tokens] = [[] for _ in prompts]
        while waiting or running:
            while waiting and slots:
                index, (prompt, length) = waiting.popleft()
                running.append(Running(index, slots.pop(), prompt, length))
            self._step(running)
            for request in [r for r in running if len(r.output) == r.length]:
                outputs[request.index] = request.output
                llama_cpp.llama_memory_seq_rm(self._cache, request.slot, -1, -1)
                slots.append(request.slot)
                running.remove(request)
        return outputs

    def _step(self, running: list[Running]) -> None:
        batch = self._batch
        batch.rows = 0
        scored: list[tuple[Running, int]] = []
        for request in sorted(running, key=lambda r: not r.output):
            piece = request.next_piece(BATCH - batch.rows)
            if not piece:
                break
            complete = request.done + len(piece) >= len(request.prompt)
            row = batch.add(request.slot, request.done, piece, complete)
            request.done += len(piece)
            if complete:
                scored.append((request, row))
        code = llama_cpp.llama_decode(self._context, batch.struct)
        if code:
            raise RuntimeError(f"llama_decode returned {code} for {batch.rows} rows")
        for request, row in scored:
            logits = llama_cpp.llama_get_logits_ith(self._context, row)
            request.output.append(int(np.ctypeslib.as_array(logits, (self._vocab,)).argmax()))


if __name__ == "__main__":
    run(Llama)
