"""An encoder-decoder without an order: masks behind what is known of a text, all filled in one pass.

All rows of a text see each other, so nothing is kept of it but its encoded source.

R rows  H heads  D head size
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightwork.errors import CheckpointError
from lightwork.models.encoder_decoder import EncoderDecoder
from lightwork.models.seq2seq import KeysValues, attended, decode, encode, keys_values, ragged, scores

MASK = "<mask>"


class BlockFiller:
    """max_len: known tokens and masks of a text. Raises CheckpointError for a tokenizer without a mask."""

    def __init__(self, model: EncoderDecoder) -> None:
        mask = model.tokenizer.vocabulary.get(MASK)
        if mask is None:
            raise CheckpointError(
                f"the tokenizer of {model.spec.name or 'this model'} has no {MASK}",
                expected="a model that was trained to fill masks",
                fix="lightwork.train.block_drafter trains one",
            )
        self._mask: int = mask
        self._spec, self._weights = model.spec, model.weights
        self.max_len = model.spec.max_len

    @torch.inference_mode()
    def read(self, source: Sequence[int]) -> list[KeysValues]:
        """What the decoder sees of a source."""
        attend, places_R = ragged([len(source)]), torch.arange(len(source))
        encoded_Rd = encode(self._weights, self._spec, torch.tensor(source), places_R, attend)
        return keys_values(self._weights, self._spec, encoded_Rd)

    @torch.inference_mode()
    def fill(
        self,
        sources: Sequence[list[KeysValues]],
        known: Sequence[Sequence[int]],
        masks: Sequence[int],
    ) -> list[list[int]]:
        """Tokens for so many masks behind each text's known tokens, which begin with the start token."""
        rows = [[*tokens, *[self._mask] * n] for tokens, n in zip(known, masks, strict=True)]
        lengths = [*map(len, rows)]

        def look(layer: int, q_RHD: Tensor) -> Tensor:
            parts = zip(torch.split(q_RHD, lengths), sources, strict=True)
            return torch.cat([attended(q, *source[layer]) for q, source in parts])

        tokens_R = torch.tensor([token for row in rows for token in row])
        places_R = torch.cat([torch.arange(n) for n in lengths])
        hidden_Rd = decode(self._weights, self._spec, tokens_R, places_R, ragged(lengths), look)
        filled_R = scores(self._weights, hidden_Rd).argmax(-1)
        parts = zip(torch.split(filled_R, lengths), masks, strict=True)
        return [row[len(row) - n :].tolist() for row, n in parts]
