"""The one ragged batch that a model's forward takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True, kw_only=True)
class Rows:
    """R rows of S sequences; the rows of a sequence are contiguous and in order of their keys.

    A row of sequence s with key index i sees key j of its sequence if j < known[s] and j <= i, or if j >=
    known[s] and bit j - known[s] of its ancestors is set. Layers with a sliding window also hide keys by
    distance in position.

    tokens, positions: int64[R]; a negative token is a probe, whose embedding the model was given apart.
    slots: int64[R], where each row's KV is written (block * block_size + offset).
    seqs: int32[R], 0..S-1. index: int64[R], the row's own key index. ancestors: uint64[R], 0 for rows of
    known tokens.
    known: int64[S], keys below it are causal, the rest draft nodes. tables: int32[S, blocks], padded with -1.
    scored: int64[N], rows whose logits are wanted, ascending. models: what each sequence's rows are computed
    with, as `Request.model`; () if that is "" for all. encoded: how many first tokens of each sequence an
    encoder reads, as `Request.encoded`; () if it reads none.
    """

    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    slots: NDArray[np.int64]
    seqs: NDArray[np.int32]
    index: NDArray[np.int64]
    ancestors: NDArray[np.uint64]
    known: NDArray[np.int64]
    tables: NDArray[np.int32]
    scored: NDArray[np.int64]
    models: Sequence[str] = ()
    encoded: Sequence[int] = ()

    @classmethod
    def of_text(cls, tokens: NDArray[np.int64], block_size: int) -> Rows:
        """One sequence from its start, in blocks 0, 1, ..., every row scored."""
        return cls.of_texts([tokens], block_size)

    @classmethod
    def of_texts(cls, texts: Sequence[NDArray[np.int64]], block_size: int) -> Rows:
        """Sequences from their starts, each in the blocks behind those of the one before, every row
        scored."""
        lengths = np.array([len(tokens) for tokens in texts])
        blocks = -(-lengths // block_size)
        at = np.concatenate([np.arange(num) for num in lengths])
        firsts, most = np.cumsum(blocks) - blocks, np.arange(blocks.max())
        tables = np.where(most < blocks[:, None], firsts[:, None] + most, -1)
        return cls(
            tokens=np.concatenate(texts),
            positions=at,
            slots=at + np.repeat(firsts * block_size, lengths),
            seqs=np.repeat(np.arange(len(texts), dtype=np.int32), lengths),
            index=at.copy(),
            ancestors=np.zeros(len(at), np.uint64),
            known=lengths,
            tables=tables.astype(np.int32),
            scored=np.arange(len(at)),
        )

    def parts(self, most: int) -> Iterator[Rows]:
        """The rows in parts of at most `most` (at least 64), which give the same one after the other.

        The draft nodes of a sequence stay together.
        """
        first, num_rows = 0, len(self.tokens)
        while num_rows - first > most:
            cut = first + most
            if self.ancestors[cut]:
                cut -= int(self.index[cut] - self.known[self.seqs[cut]])
            yield self._part(first, cut)
            first = cut
        yield self._part(first, num_rows) if first else self

    def _part(self, first: int, last: int) -> Rows:
        per_row = ("tokens", "positions", "slots", "seqs", "index", "ancestors")
        scored = self.scored[(self.scored >= first) & (self.scored < last)] - first
        return replace(self, scored=scored, **{name: getattr(self, name)[first:last] for name in per_row})
