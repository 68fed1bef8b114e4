"""The kind of technique that guesses tokens: one file per proposer, and the values they speak of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lightwork.decode.constraints import Matcher
from lightwork.decode.sampling import Sampling
from lightwork.decode.verifiers import Verdict
from lightwork.errors import InvariantError

ROOT = -1
"""The parent of the first drafted tokens: the row of the last known token."""

MAX_NODES = 64
"""Draft nodes per sequence: a row's visible ancestors are one 64-bit mask."""


class Text(Protocol):
    """What a proposer may see of a sequence. sampling: how its tokens are chosen, with which seed. matcher:
    which tokens its constraint allows, None without one."""

    id: int
    tokens: list[int]
    prompt_len: int
    sampling: Sampling
    matcher: Matcher | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Whose tokens are guessed. model: its URI. on: the place that it computes on.

    max_seqs, max_len: of the engine, sequences at once and tokens of one. beside: runs what is to go on
    while the target computes, one call after another; who uses it shuts it down when closed. put_probes:
    gives the target the embeddings [P, d] of the probes in drafts; None where it computes none.
    """

    model: str
    on: str
    max_seqs: int
    max_len: int
    beside: Executor
    put_probes: Callable[[NDArray[np.float32]], None] | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """A tree of guessed tokens under the last known token, parents before children.

    tokens: guessed ids; -1 - i is a probe, row i of the embeddings that the proposer gave the target. A probe
    asks what might come later: no token sees it, none is chosen after it, and its keys and values are not
    kept. parents: for each node the index of its parent, or ROOT.
    """

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()

    @classmethod
    def chain(cls, tokens: Sequence[int]) -> Draft:
        return cls(tuple(tokens), tuple(range(-1, len(tokens) - 1)))

    def __len__(self) -> int:
        return len(self.tokens)

    def child(self, node: int, token: int) -> int | None:
        """The first node under `node` that guesses `token`."""
        for i, parent in enumerate(self.parents):
            if parent == node and self.tokens[i] == token:
                return i
        return None

    def num_guesses(self) -> int:
        """Nodes that are tokens."""
        return sum(token >= 0 for token in self.tokens)

    def depth(self) -> int:
        """The most tokens that can be accepted."""
        return max((d for d, t in zip(self.depths(), self.tokens, strict=True) if t >= 0), default=0)

    def probes(self, node: int) -> list[int]:
        """The probes under a node, in chains or one, with no guess between; in the draft's order."""
        found: list[int] = []
        for i, parent in enumerate(self.parents):
            if self.tokens[i] < 0 and (parent == node or parent in found):
                found.append(i)
        return found

    def without(self, nodes: Collection[int]) -> Draft:
        """Cut off these nodes, and what is under them."""
        place = {ROOT: ROOT}
        for i, parent in enumerate(self.parents):
            if parent in place and i not in nodes:
                place[i] = len(place) - 1
        kept = [i for i in place if i != ROOT]
        return Draft(tuple(self.tokens[i] for i in kept), tuple(place[self.parents[i]] for i in kept))

    def depths(self) -> list[int]:
        """Depth of each node; a child of the root has depth 1."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent == ROOT else depths[parent] + 1)
        return depths

    def ancestors(self) -> list[int]:
        """For each node the bitmask of itself and its ancestors."""
        masks: list[int] = []
        for i, parent in enumerate(self.parents):
            masks.append((1 << i) | (0 if parent == ROOT else masks[parent]))
        return masks

    def check(self, proposer: str, max_rows: int, vocab_size: int, num_probes: int = 0) -> None:
        """Raise InvariantError, naming the proposer, unless this is a tree of tokens within its rows.

        num_probes: that the target has embeddings of.
        """
        tokens, parents, wrong = self.tokens, self.parents, None
        if len(tokens) != len(parents):
            wrong = f"{len(tokens)} tokens but {len(parents)} parents"
        elif len(tokens) > min(max_rows, MAX_NODES):
            wrong = f"{len(tokens)} rows where {min(max_rows, MAX_NODES)} were given"
        else:
            for i, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
                if not (hasattr(token, "__index__") and hasattr(parent, "__index__")):
                    wrong = f"tokens {tokens} under {parents} that are not all integers"
                elif not ROOT <= parent < i:
                    wrong = f"parents {parents} that do not come before their children"
                elif not -num_probes <= token < vocab_size:
                    wrong = f"tokens {tokens} outside a vocabulary of {vocab_size} and {num_probes} probes"
                elif token >= 0 and parent != ROOT and tokens[parent] < 0:
                    wrong = f"tokens {tokens} under {parents}, one of them behind a probe"
                if wrong:
                    break
        if wrong:
            raise InvariantError(
                f"{proposer} proposed {wrong}", expected="a valid draft", fix=f"serve without {proposer}"
            )


class Pass(NamedTuple):
    """A drafter's own model at work. model: its URI. block: one pass over all of each text and a draft behind
    it; else one for each row of the longest draft, of a row of each text.
    """

    model: str
    block: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """What forming drafts takes, counted: seconds are a matter of who prices or measures it.

    passes: one kind after another; without any, each text is only looked through. beside: it goes on while
    the target computes, and what comes of it is the next step's draft. least: rows that are written, however
    few are asked for.
    """

    passes: tuple[Pass, ...] = ()
    beside: bool = False
    least: int = 0


class Proposer(Protocol):
    """A way to guess what comes next."""

    def begin(self, target: Target) -> Drafter:
        """Who guesses for one engine; the proposer itself if it remembers nothing.

        Raises SpecError if it cannot guess for this target.
        """
        ...


class Drafter(Protocol):
    """Guesses for one engine; wrong guesses cost rows, never correctness."""

    @property
    def k(self) -> int:
        """The most rows one sequence can use in a step."""
        ...

    @property
    def effort(self) -> Effort:
        """What its drafts take to form."""
        ...

    def gain(self, text: Text, rate: float) -> Sequence[float]:
        """Tokens that each more row of a draft is expected to add, from 0 to 1 and never more than the row
        before. rate: the share of its guesses for this text that have held lately.
        """
        ...

    def propose(self, texts: Sequence[Text], rows: Sequence[int]) -> list[Draft]:
        """One draft per text, of at most rows[i] nodes; an empty draft is a good answer."""
        ...

    def accept(self, texts: Sequence[Text], verdicts: Sequence[Verdict]) -> None:
        """Told what the verifier kept of the last drafts, in the same order."""
        ...

    def forget(self, seq_id: int) -> None:
        """A sequence has ended or was preempted: nothing that was kept of it is needed. It may come back."""
        ...

    def close(self) -> None:
        """End threads, and models that were loaded: nothing is asked any more."""
        ...
