"""Draft model: a smaller model of the same vocabulary guesses what the target will say.

Paper:  "Fast Inference from Transformers via Speculative Decoding", 2022
Idea:   a small model writes k tokens one after the other; the target checks all of them in one pass
Shapes: S texts -> S chains of at most k nodes, from k passes of S sequences
Cost:   a pass over what is new of the texts and k - 1 passes of one row each; keys and values of every text
Claims: pearl
Differs: it chooses with the target's own noise of (seed, position), so that guesses are verified by equality
         and no probabilities are kept
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from lightwork.decode.acceptance import chain_gain
from lightwork.decode.choose import choose
from lightwork.decode.proposers import MAX_NODES, Draft, Effort, Pass, Target, Text
from lightwork.decode.proposers._agreement import agreement
from lightwork.decode.proposers._own_guesses import OwnGuesses, Written
from lightwork.decode.proposers._rows import rows_of
from lightwork.decode.proposers._vocabulary import check_vocabularies
from lightwork.decode.proposers.ppd import PPD
from lightwork.decode.sampling import pick
from lightwork.decode.verifiers import Verdict
from lightwork.errors import CapacityError, InvariantError, RangeError
from lightwork.kernels.cpu.formats import PAGE
from lightwork.kernels.rows import Rows
from lightwork.memory.kv import Copy, KVCache
from lightwork.models import compiles, load, load_compiled
from lightwork.models.layer_plan import LayerPlan
from lightwork.models.precisions.stored import Stored

BLOCK_SIZE = 16
"""Tokens of a KV block where torch computes; the compiled step has its pages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftModel:
    """model: URI of a model with the target's vocabulary. k: tokens that it writes at a time.

    gb: the most memory for its keys and values; sequences beyond that get no drafts. threads: of a CPU.
    guess: by prompt tokens of this model, which then writes several tokens in a pass of guess.k rows more.
    """

    model: str = "tiny:draft"
    k: int = 4
    gb: float = 1.0
    threads: int = 1
    guess: PPD | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.k <= MAX_NODES or self.gb <= 0.0 or self.threads < 1:
            raise RangeError(
                f"DraftModel cannot draft k={self.k} tokens with gb={self.gb} and {self.threads} threads",
                expected=f"1 <= k <= {MAX_NODES}, memory, and a thread or more",
                fix="DraftModel(k=4)",
            )

    def begin(self, target: Target) -> DraftRunner:
        """With the model loaded. Raises CheckpointError, CapacityError, SpecError."""
        check_vocabularies(target.model, self.model)
        if compiles(target.on):
            model = load_compiled(self.model, precision=Stored())
            model.set_threads(self.threads)
            return DraftRunner(self, model, "float32", PAGE, target)
        dtype = "float32" if target.on == "cpu" else "bfloat16"
        return DraftRunner(self, load(self.model, dtype=dtype, device=target.on), dtype, BLOCK_SIZE, target)


class DraftRunner:
    """A draft model at work for one engine, with keys and values of its own.

    Each text is continued from what its last draft and the text agree in. Prompts that begin alike share keys
    and values: no guess changes these.
    """

    def __init__(self, how: DraftModel, model: Any, kv_dtype: str, block_size: int, target: Target) -> None:
        self._how = how
        self._asked: object = how
        self._plan: LayerPlan | None = None
        self._calibrate = False
        self._model = model
        self._max_len: int = model.spec.max_len
        self._computed: dict[int, list[int]] = {}
        block_bytes = model.spec.kv_bytes_per_token(kv_dtype) * block_size
        blocks = int(how.gb * 1e9 / block_bytes)
        if blocks < 1:
            raise CapacityError(
                f"gb={how.gb} holds no block of keys and values of {how.model}",
                expected=f"at least {block_bytes / 1e9:.2g}",
                fix="raise gb",
            )
        self._own: OwnGuesses | None = None
        self._own_rows = 0
        if how.guess is not None:
            own = how.guess.begin(replace(target, model=how.model, put_probes=model.set_probes))
            self._own, self._own_rows = OwnGuesses(own, self._max_len), own.k
        longest = min(target.max_len, self._max_len) + self._own_rows
        self._kv = KVCache(min(blocks, target.max_seqs * -(-longest // block_size)), block_size)
        self._pool = model.new_kv(self._kv.total, block_size)

    def __repr__(self) -> str:
        return repr(self._asked)

    def arrange(self, plan: LayerPlan, *, calibrate: bool, asked: object) -> None:
        """Draft by a plan of the layers (see `easy_spec`), but for passes over new texts.

        calibrate: the first pass of each draft is exact, too, over all that was computed by the plan before.
        asked: who it says that it is.
        """
        self._plan, self._calibrate, self._asked = plan, calibrate, asked

    @property
    def k(self) -> int:
        return self._how.k

    @property
    def effort(self) -> Effort:
        return Effort(passes=(Pass(self._how.model),))

    def gain(self, text: Text, rate: float) -> Sequence[float]:
        return chain_gain(rate, self.k)

    def propose(self, texts: Sequence[Text], rows: Sequence[int]) -> list[Draft]:
        plan = self._plan
        if self._calibrate or any(text.id not in self._computed for text in texts):
            plan = None
        most = [self._begin(text, n) for text, n in zip(texts, rows, strict=True)]
        chains: list[list[int]] = [[] for _ in texts]
        going = [i for i, n in enumerate(most) if n]
        while going:
            written = self._write([texts[i] for i in going], [chains[i] for i in going], plan)
            plan = self._plan
            for i, some in zip(going, written, strict=True):
                chains[i] += some[: most[i] - len(chains[i])]
                if not some:
                    most[i] = 0
            going = [i for i in going if len(chains[i]) < most[i]]
        if self._calibrate:
            for text, chain in zip(texts, chains, strict=True):
                if chain:  # what the text goes on with is computed again, exactly
                    del self._computed[text.id][len(text.tokens) :]
        return [Draft.chain(chain) for chain in chains]

    def accept(self, texts: Sequence[Text], verdicts: Sequence[Verdict]) -> None:
        """Nothing to learn: the texts say what was kept."""

    def forget(self, seq_id: int) -> None:
        if self._own is not None:
            self._own.forget(seq_id)
        if self._computed.pop(seq_id, None) is not None:
            self._kv.release(seq_id)

    def close(self) -> None:
        if self._own is not None:
            self._own.close()
        self._model.close()

    def check(self) -> None:
        """Raise InvariantError unless every block is of a sequence, cached, or free."""
        self._kv.check()

    @property
    def usage(self) -> float:
        """Share of the blocks that sequences hold, 0 to 1."""
        return self._kv.usage

    def _begin(self, text: Text, rows: int) -> int:
        """Take a text up where it and its last draft part; returns how many tokens can be written."""
        known = len(text.tokens)
        most = min(self.k, rows, self._max_len - known + 1)
        if most < 1:
            return 0
        if text.id not in self._computed:
            num = self._kv.attach(text.id, text.tokens, text.prompt_len)
            self._computed[text.id] = text.tokens[:num]
        computed = self._computed[text.id]
        del computed[min(agreement(computed, text.tokens), known - 1) :]
        copies = self._kv.reserve(text.id, known + most - 1 + self._own_rows)
        if copies is None:
            return 0
        self._copy(copies)
        return most

    def _copy(self, copies: Sequence[Copy]) -> None:
        for src, dst, num in copies:
            self._pool.copy(range(src, src + num), range(dst, dst + num))

    def _write(
        self, texts: Sequence[Text], chains: Sequence[Sequence[int]], plan: LayerPlan | None
    ) -> list[list[int]]:
        """The next token of each text and what was drafted of it, or more of them; none where scores say
        nothing."""
        if self._own is not None:
            return self._write_more(self._own, texts, chains, plan)
        logits_SV = self._model.logits(self._rows(texts, chains, [Draft()] * len(texts)), self._pool, plan)
        for text in texts:
            self._kv.commit(text.id, text.tokens, text.prompt_len)
        hows = [text.sampling for text in texts]
        positions = [len(self._computed[text.id]) for text in texts]
        tokens = choose(logits_SV, hows, positions)
        for i, (text, chain) in enumerate(zip(texts, chains, strict=True)):
            if tokens[i] < 0:
                output = [*text.tokens[text.prompt_len :], *chain]
                with suppress(InvariantError):
                    told = pick(logits_SV[i], hows[i], positions[i], text.tokens[: text.prompt_len], output)
                    tokens[i] = told.token
        return [[token] if token >= 0 else [] for token in tokens]

    def _write_more(
        self,
        own: OwnGuesses,
        texts: Sequence[Text],
        chains: Sequence[Sequence[int]],
        plan: LayerPlan | None,
    ) -> list[list[int]]:
        """As `_write`, by a pass with guesses of what the model will write; those that hold are kept."""
        so_far = [
            Written(text.id, [*text.tokens, *chain], text.prompt_len, text.sampling)
            for text, chain in zip(texts, chains, strict=True)
        ]
        drafts = own.draft(so_far)
        logits_NV = self._model.logits(self._rows(texts, chains, drafts), self._pool, plan)
        written, at = [], 0
        for text, mine, draft in zip(texts, so_far, drafts, strict=True):
            scores_NV, verdict = logits_NV[at : at + 1 + len(draft)], Verdict(())
            at += len(scores_NV)
            with suppress(InvariantError):
                verdict = own.verify(mine, draft, scores_NV)
            computed = self._computed[text.id]
            self._copy(self._kv.keep(text.id, len(computed), verdict.path))
            computed += (draft.tokens[node] for node in verdict.path)
            self._kv.commit(text.id, text.tokens, text.prompt_len)
            written.append([pick.token for pick in verdict.emitted])
        return written

    def _rows(self, texts: Sequence[Text], chains: Sequence[Sequence[int]], drafts: Sequence[Draft]) -> Rows:
        """What is new of each text, which counts as computed from now on, and a draft behind it."""
        starts, news = [], []
        for text, chain in zip(texts, chains, strict=True):
            computed, known = self._computed[text.id], len(text.tokens)
            new = [*text.tokens[len(computed) :], *chain[max(0, len(computed) - known) :]]
            starts.append(len(computed))
            news.append(new)
            computed += new
        return rows_of(self._kv, [text.id for text in texts], starts, news, drafts)
