"""What a text has to be, and which tokens keep it so.

A constraint is compiled once per tokenizer; a matcher then says for any output so far which tokens may come
next. It is a function of that output: what it remembers only saves time. So preemption, drafts that are
rolled back, another engine or another process change nothing.

llguidance does the matching: an Earley parser over derivatives of regular expressions, walked along the trie
of the vocabulary. Where what comes next is certain, it allows the token alone that the tokenizer itself would
write.

V vocabulary size
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from threading import Lock
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from lightwork.errors import ConstraintError, MissingExtraError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from lightwork.models.tokenizer import Tokenizer

Kind = Literal["json_object", "json_schema", "regex", "choice", "lark"]
Allowed = NDArray[np.bool_]

KEPT = 128
"""Compiled constraints of one tokenizer, those used last; some 100 kB each."""
SHOWN = 600
"""Characters of what the compiler says."""
SPACE = r"\n( {0,24}|\t{0,8})| "
"""Where JSON has room for white space: a line and its indentation, or one space, as every printer writes it.
Of more a weak model makes a whole reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """What the whole output has to be.

    kind: any JSON object, JSON of a schema, a full match of a regular expression (in Rust's syntax, with the
    digits, words and spaces of ASCII), one of several strings, or a sentence of a grammar (in Lark's notation
    or GBNF). text: the schema or the list of strings as JSON, the expression or the grammar as it is; "" for
    json_object.
    """

    kind: Kind
    text: str = ""


class Grammars:
    """Compiles constraints for one tokenizer, and keeps the latest. From any thread.

    vocab_size: of the model's logits, which may be wider than the tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._vocabulary: LLTokenizer | None = None
        self._compiled: OrderedDict[Constraint, LLMatcher] = OrderedDict()
        self._compiling, self._looking = Lock(), Lock()

    def __contains__(self, constraint: Constraint) -> bool:
        return constraint in self._compiled

    def matcher(self, constraint: Constraint) -> Matcher:
        """At the start of an output; takes microseconds once the constraint has been compiled.

        Raises ConstraintError for one that cannot be compiled, or that no text satisfies; MissingExtraError
        without llguidance.
        """
        start = self._kept(constraint)
        if start is None:
            with self._compiling:
                start = self._kept(constraint) or self._compile(constraint)
                self._keep(constraint, start)
        return Matcher(start, self._vocab_size, self._tokenizer.eos_ids, partial(self._forget, constraint))

    def _keep(self, constraint: Constraint, start: LLMatcher) -> None:
        with self._looking:
            self._compiled[constraint] = start
            while len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)

    def _forget(self, constraint: Constraint) -> None:
        """Compile it anew when it is next asked for: matchers of one constraint share what they have learnt
        of its expressions, so one that has reached a limit would be there again at once."""
        with self._looking:
            self._compiled.pop(constraint, None)

    def _kept(self, constraint: Constraint) -> LLMatcher | None:
        with self._looking:
            start = self._compiled.get(constraint)
            if start is not None:
                self._compiled.move_to_end(constraint)
        return start

    def _compile(self, constraint: Constraint) -> LLMatcher:
        try:
            import llguidance
        except ModuleNotFoundError:
            raise MissingExtraError("llguidance", "serve") from None
        if self._vocabulary is None:
            self._vocabulary = _read(self._tokenizer, self._vocab_size)
        try:
            grammar = _grammar(constraint)
        except (ValueError, RecursionError) as error:
            raise _refused(constraint, str(error)) from error
        start = llguidance.LLMatcher(self._vocabulary, grammar, log_level=0)
        told = [start.get_error()] if start.is_error() else start.get_grammar_warnings()
        if not told:
            first = start.deep_copy()
            first.compute_bitmask()  # fails if no text satisfies it
            told = [first.get_error()] if first.is_error() else []
        if told:
            raise _refused(constraint, "; ".join(told))
        return start


@lru_cache(maxsize=4)
def grammars(tokenizer: Tokenizer, vocab_size: int) -> Grammars:
    """Of a tokenizer, the same for all who ask. Reads the vocabulary when something is compiled."""
    return Grammars(tokenizer, vocab_size)


class Matcher:
    """What may follow an output so far. Every answer is a function of the output that it is asked about; the
    parser stays where it was last, so outputs that share a beginning cost what is new. From any thread."""

    __slots__ = ("_allowed", "_at", "_ends", "_failed", "_lock", "_output", "_start", "_vocab_size")

    def __init__(
        self, start: LLMatcher, vocab_size: int, ends: Iterable[int], failed: Callable[[], object]
    ) -> None:
        self._start = start
        self._vocab_size = vocab_size
        self._ends = [*ends]
        self._failed = failed
        self._at = start.deep_copy()
        self._output: list[int] = []
        self._allowed: Allowed | None = None
        self._lock = Lock()

    def allowed(self, output: Sequence[int]) -> Allowed:
        """bool [V]: tokens that may come next; where nothing more can, those that end a text.

        Raises ConstraintError if the output breaks the constraint, or the parser's limits are reached.
        """
        with self._lock:
            self._go(output)
            return self._mask()

    def end(self, output: Sequence[int], tokens: Sequence[int]) -> int | None:
        """How many of the tokens behind the output make it whole, so that nothing can follow; None: it goes
        on. Raises ConstraintError."""
        with self._lock:
            for i in range(1, len(tokens) + 1):
                self._go([*output, *tokens[:i]])
                if self._at.is_stopped() or (self._at.is_accepting() and self._only_ends()):
                    return i
        return None

    def num_accepted(self, output: Sequence[int], tokens: Sequence[int]) -> int:
        """How many of the tokens can follow the output, one after the other; at least as many as `allowed`
        says. Raises ConstraintError."""
        with self._lock:
            self._go(output)
            return 0 if self._at.is_stopped() else self._at.validate_tokens([*tokens])

    def forced(self, output: Sequence[int]) -> list[int]:
        """The tokens that certainly follow, as the tokenizer writes them. Raises ConstraintError."""
        with self._lock:
            self._go(output)
            return [*self._at.compute_ff_tokens()]

    def _go(self, output: Sequence[int]) -> None:
        """Be behind this output."""
        kept = _common(self._output, output)
        left = self._output[kept:]
        if not left and kept == len(output) and not self._at.is_error():
            return
        self._allowed = None
        del self._output[kept:]
        # Of an end token the parser may have taken no notice, and it goes back by those that it counted.
        back = left and not any(token in self._ends for token in left) and self._at.rollback(len(left))
        if self._at.is_error() or (left and not back):
            self._at = self._start.deep_copy()
            self._output.clear()
        new = [*output[len(self._output) :]]
        taken = self._at.try_consume_tokens(new)
        self._output += new[:taken]
        if self._at.is_error():
            raise self._broken()
        if taken < len(new):
            raise ConstraintError(
                f"token {new[taken]} is not allowed at {len(self._output)}",
                expected="an output of allowed tokens",
                fix="choose among them",
            )

    def _mask(self) -> Allowed:
        if self._allowed is None:
            packed = np.frombuffer(self._at.compute_bitmask(), np.uint8)
            if self._at.is_error():  # the mask is that of an end, then
                raise self._broken()
            bits = np.unpackbits(packed, bitorder="little")
            self._allowed = np.zeros(self._vocab_size, np.bool_)
            self._allowed[: len(bits)] = bits[: self._vocab_size]
        return self._allowed

    def _broken(self) -> ConstraintError:
        self._failed()
        return ConstraintError(
            f"the constraint cannot be followed further: {self._at.get_error()[:SHOWN]}",
            expected="a grammar within the parser's limits",
            fix="make it simpler",
        )

    def _only_ends(self) -> bool:
        allowed = self._mask()
        return int(allowed.sum()) == int(allowed[self._ends].sum())


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two outputs begin with alike."""
    shorter = min(len(a), len(b))
    if a[:shorter] == b[:shorter]:
        return shorter
    return next(i for i in range(shorter) if a[i] != b[i])


def _read(tokenizer: Tokenizer, vocab_size: int) -> LLTokenizer:
    """The vocabulary as the matcher walks it."""
    from llguidance import LLTokenizer

    if not tokenizer.eos_ids:
        raise ConstraintError(
            "this model has no token that ends a text, so a constraint could not end one",
            expected="eos_token_id in its generation_config.json",
            fix="ask without a constraint",
        )
    size = max(vocab_size, tokenizer.vocab_size)
    try:
        return LLTokenizer(tokenizer.json, n_vocab=size, eos_token=sorted(tokenizer.eos_ids))
    except Exception as error:  # the library raises plain exceptions for tokenizers that it does not know
        raise ConstraintError(
            f"llguidance cannot read this model's tokenizer: {str(error)[:SHOWN]}",
            expected="byte-level BPE, or pieces with bytes to fall back on",
            fix="ask without a constraint",
        ) from error


def _grammar(constraint: Constraint) -> str:
    """The constraint in llguidance's own form. Raises ValueError for what is not even JSON."""
    from llguidance import LLMatcher, grammar_from, regex_to_lark

    kind, text = constraint.kind, constraint.text
    if kind == "choice":
        choices = json.loads(text)
        if not isinstance(choices, list) or not choices or not all(isinstance(c, str) for c in choices):
            raise ValueError("it is not a list of strings, one or more")
        return LLMatcher.grammar_from_regex("|".join(map(_literally, choices)))
    if kind == "regex":
        return LLMatcher.grammar_from_regex(regex_to_lark(text, use_ascii="dws"))
    if kind == "lark":
        return grammar_from("grammar", text)
    schema = json.loads(text) if kind == "json_schema" else {"type": "object"}
    if not isinstance(schema, dict):
        raise ValueError("it is not a JSON object")
    own = schema.get("x-guidance", {})
    if not isinstance(own, dict):
        raise ValueError("its x-guidance is not a JSON object")
    options = {"whitespace_pattern": SPACE, **own, "lenient": False}
    return LLMatcher.grammar_from_json_schema({**schema, "x-guidance": options})


def _literally(text: str) -> str:
    """An expression that matches this text alone."""
    return "".join(c if c.isalnum() else f"\\x{{{ord(c):x}}}" for c in text)


def _refused(constraint: Constraint, why: str) -> ConstraintError:
    what = {"json_object": "JSON", "json_schema": "JSON schema", "lark": "grammar"}
    return ConstraintError(
        f"the {what.get(constraint.kind, constraint.kind)} cannot be enforced: {why[:SHOWN]}",
        expected="one that some text satisfies, of the keywords and syntax that llguidance knows",
        fix="change what the message names; nothing was generated",
    )
