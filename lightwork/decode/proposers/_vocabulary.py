"""What drafters with a model of their own require: that a token means the same in both models."""

from __future__ import annotations

from lightwork.errors import SpecError
from lightwork.models import read_shape, resolve
from lightwork.models.tokenizer import Tokenizer


def check_vocabularies(target: str, draft: str) -> None:
    """Raises SpecError unless a token means the same in both models."""
    ours, theirs = Tokenizer(resolve(draft)).vocabulary, Tokenizer(resolve(target)).vocabulary
    sizes = [read_shape(uri).vocab_size for uri in (draft, target)]
    if ours == theirs and sizes[0] == sizes[1]:
        return
    told = f"{draft} has {sizes[0]} tokens and {target} {sizes[1]}"
    if differing := [text for text in theirs | ours if ours.get(text) != theirs.get(text)]:
        one, other = (names.get(differing[0], "none") for names in (ours, theirs))
        told += f"; {differing[0]!r} is token {one} of the one and {other} of the other"
    raise SpecError(
        f"the vocabularies of draft and target differ: {told}",
        expected="the same tokenizer, so that a drafted token means what the target would say",
        fix=f"a smaller model of the family of {target}",
    )
