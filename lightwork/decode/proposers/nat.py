"""NAT: generalised aggressive decoding; a model without an order guesses a whole block in one pass.

Paper:  "Lossless Acceleration for Seq2seq Generation with Aggressive Decoding", 2022 (GAD)
Idea:   behind what is known of the output stand k masks; a decoder whose rows all see each other fills them
        at once, and the target checks the block in one pass
Shapes: S texts of t output tokens -> S chains of at most k nodes
Cost:   one pass over t + k rows of each text and no cache of them; its source is encoded once
Claims: aggressive_decoding
Differs: k is 8 and not 25; how much of a block is used is up to the row budget
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightwork.decode.acceptance import chain_gain
from lightwork.decode.proposers import MAX_NODES, Draft, Effort, Pass, Target, Text
from lightwork.decode.proposers._vocabulary import check_vocabularies
from lightwork.decode.verifiers import Verdict
from lightwork.errors import RangeError, SpecError
from lightwork.models import load_seq2seq, read_shape

if TYPE_CHECKING:
    from lightwork.models.block_filler import BlockFiller
    from lightwork.models.seq2seq import KeysValues


@dataclass(frozen=True, slots=True, kw_only=True)
class Nat:
    """model: URI of a block drafter with the target's vocabulary. k: masks that it fills at a time."""

    model: str = "block-drafter"
    k: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.k <= MAX_NODES:
            raise RangeError(
                f"Nat cannot draft k={self.k} tokens", expected=f"1 <= k <= {MAX_NODES}", fix="Nat(k=8)"
            )

    def begin(self, target: Target) -> BlockDrafter:
        """With the model loaded. Raises CheckpointError, SpecError."""
        check_vocabularies(target.model, self.model)
        if not read_shape(target.model).encoder_layers:
            raise SpecError(
                f"{target.model} has no encoder, and a block drafter reads the source of one",
                expected="an encoder-decoder",
                fix="DraftModel, for a decoder alone",
            )
        model = load_seq2seq(self.model)
        from lightwork.models.block_filler import BlockFiller

        return BlockDrafter(self, BlockFiller(model))


class BlockDrafter:
    """A block drafter at work for one engine. A prompt is a source, and the token that outputs begin with."""

    def __init__(self, how: Nat, filler: BlockFiller) -> None:
        self._how = how
        self._filler = filler
        self._sources: dict[int, list[KeysValues]] = {}

    def __repr__(self) -> str:
        return repr(self._how)

    @property
    def k(self) -> int:
        return self._how.k

    @property
    def effort(self) -> Effort:
        return Effort(passes=(Pass(self._how.model, block=True),))

    def gain(self, text: Text, rate: float) -> Sequence[float]:
        return chain_gain(rate, self.k)

    def propose(self, texts: Sequence[Text], rows: Sequence[int]) -> list[Draft]:
        known = [text.tokens[text.prompt_len - 1 :] for text in texts]
        masks = [max(0, min(self.k, self._filler.max_len - len(tokens))) for tokens in known]
        going = [i for i, n in enumerate(masks) if n and rows[i]]
        drafts = [Draft()] * len(texts)
        if going:
            sources = [self._source(texts[i]) for i in going]
            blocks = self._filler.fill(sources, [known[i] for i in going], [masks[i] for i in going])
            for i, block in zip(going, blocks, strict=True):
                drafts[i] = Draft.chain(block[: rows[i]])
        return drafts

    def accept(self, texts: Sequence[Text], verdicts: Sequence[Verdict]) -> None:
        """Nothing to learn: the texts say what was kept."""

    def forget(self, seq_id: int) -> None:
        self._sources.pop(seq_id, None)

    def close(self) -> None:
        """Nothing runs."""

    def _source(self, text: Text) -> list[KeysValues]:
        """What the drafter sees of a text's source, encoded when it is first asked for."""
        if text.id not in self._sources:
            self._sources[text.id] = self._filler.read(text.tokens[: text.prompt_len - 1])
        return self._sources[text.id]
