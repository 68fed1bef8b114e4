"""Copying goes on where the output is, and starts again only where there is no doubt."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightwork.decode.proposers.copy import Copy
from lightwork.errors import RangeError


@dataclass
class Text:
    tokens: list[int]
    id: int = 0
    prompt_len: int = 0


def drafted(
    source: list[int], output: list[int], copy: Copy | None = None, rows: int = 64
) -> tuple[int, ...]:
    return (copy or Copy()).propose([Text([*source, *output], 0, len(source))], [rows])[0].tokens


def test_copying_starts_at_the_first_token_and_goes_on_where_it_was_cut() -> None:
    assert drafted([5, 5, 5, 5], []) == (5, 5, 5, 5)
    assert drafted([5, 5, 5, 5], [5, 5]) == (5, 5)
    assert drafted([1, 2, 3, 4], [1], rows=2) == (2, 3)
    assert drafted([1, 2, 3, 4], [], rows=0) == ()
    assert drafted([1, 2], [1, 2]) == ()
    assert drafted([], [3]) == drafted([], []) == drafted([4], [4]) == ()


def test_after_a_difference_only_a_place_without_a_double_is_gone_on_from() -> None:
    source = [1, 2, 3, 1, 2, 4, 5, 2]
    assert drafted(source, [9]) == ()
    assert drafted(source, [9, 4]) == (5, 2)
    assert drafted(source, [9, 2]) == ()
    assert drafted(source, [9, 1, 2]) == ()
    assert drafted(source, [9, 3, 1, 2]) == (4, 5, 2)
    assert drafted(source, [9, 3, 1, 2], Copy(n_max=2)) == ()
    assert drafted(source, [9, 5, 2]) == ()


def test_a_span_of_the_prompt_is_the_source() -> None:
    assert drafted([8, 1, 2, 3, 8], [], Copy(start=1, stop=-1)) == (1, 2, 3)
    assert drafted([8, 1, 2, 3, 8], [8], Copy(start=1, stop=-1)) == ()
    assert drafted([8, 1], [], Copy(start=5)) == ()


@given(
    source=st.lists(st.integers(0, 4), max_size=30),
    output=st.lists(st.integers(0, 5), max_size=20),
    n_max=st.integers(1, 4),
)
def test_a_plain_search_says_the_same(source: list[int], output: list[int], n_max: int) -> None:
    at = len(source)
    if output == source[: len(output)]:
        at = len(output)
    else:
        for n in range(1, min(n_max, len(output)) + 1):
            places = [i for i in range(len(source) - n + 1) if source[i : i + n] == output[-n:]]
            if len(places) <= 1:
                at = places[0] + n if places else at
                break
    assert drafted(source, output, Copy(n_max=n_max)) == tuple(source[at:])


@pytest.mark.parametrize("settings", [{"k": 0}, {"k": 65}, {"n_max": 0}], ids=str)
def test_impossible_settings_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(RangeError, match="Copy"):
        Copy(**settings)
