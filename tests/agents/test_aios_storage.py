"""Files with versions: nothing written is lost, nothing half written is seen, and texts are found."""

from __future__ import annotations

from math import log
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightwork.agents.aios.storage import Storage
from lightwork.agents.aios.text_index import K1, B, TextIndex
from lightwork.errors import LightworkError, RangeError, UsageError


def test_versions_count_up_and_can_be_had_again(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    assert [storage.write("ann", "plan", text) for text in (b"one", b"two", b"three")] == [1, 2, 3]
    assert storage.read("ann", "plan") == b"three"
    assert storage.read("ann", "plan", 2) == b"two"
    assert storage.roll_back("ann", "plan", 1) == 4
    assert storage.read("ann", "plan") == b"one"
    assert storage.roll_back("ann", "plan", 3) == 5  # which undoes it
    again = Storage(tmp_path)
    assert again.read("ann", "plan") == b"three"
    assert again.versions("ann", "plan") == [1, 2, 3, 4, 5]


def test_a_version_that_was_not_whole_is_none(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.write("ann", "plan", b"whole")
    (folder,) = (tmp_path / "=ann").iterdir()
    (folder / "00000002.99999999.part").write_bytes(b"hal")
    assert Storage(tmp_path).read("ann", "plan") == b"whole"
    assert storage.write("ann", "plan", b"next") == 2
    assert sorted(place.name for place in folder.iterdir()) == ["00000001", "00000002"]


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LightworkError, match="cannot be written"):
        Storage(tmp_path / "file").write("ann", "plan", b"x")


@given(name=st.text(min_size=1, max_size=15), owner=st.text(min_size=1, max_size=15))
def test_any_name_is_a_name_and_none_a_path(
    tmp_path_factory: pytest.TempPathFactory, name: str, owner: str
) -> None:
    folder = tmp_path_factory.mktemp("storage")
    storage = Storage(folder / "files")
    storage.write(owner, name, b"x")
    assert storage.read(owner, name) == b"x"
    assert storage.names(owner) == [name]
    assert [place.name for place in folder.iterdir()] == ["files"]
    assert len([*folder.rglob("00000001")]) == 1
    storage.delete(owner, name)
    assert storage.names(owner) == []


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.write("ann", "plan", b"x")
    with pytest.raises(UsageError, match="'bob' has no file 'plan'"):
        storage.read("bob", "plan")
    with pytest.raises(UsageError, match="'plan' has no version 2"):
        storage.roll_back("ann", "plan", 2)
    with pytest.raises(UsageError, match="no file 'x'"):
        storage.delete("ann", "x")
    for name in ("", "x" * 201):
        with pytest.raises(RangeError, match="cannot name a file"):
            storage.write("ann", name, b"x")


def test_texts_are_found_by_their_latest_words(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.write("ann", "sea", b"the ship is at sea, the sea is calm")
    storage.write("ann", "land", b"the house is on land")
    storage.write("ann", "both", b"ship, house, land and a long, long way through all of it")
    assert [name for name, _ in storage.search("ann", "Ship at SEA")] == ["sea", "both"]
    storage.write("ann", "sea", b"nothing")
    storage.delete("ann", "land")
    for one in (storage, Storage(tmp_path)):
        assert [name for name, _ in one.search("ann", "ship at sea on land")] == ["both"]
    assert storage.search("bob", "ship") == []


def test_scores_are_those_of_the_formula() -> None:
    index, texts = TextIndex(), {"a": "x y y", "b": "x", "c": "z z z z"}
    for name, text in texts.items():
        index.put(name, text)
    mean = (3 + 1 + 4) / 3

    def score(times: int, length: int, holders: int) -> float:
        rare = log(1 + (3 - holders + 0.5) / (holders + 0.5))
        return rare * times * (K1 + 1) / (times + K1 * (1 - B + B * length / mean))

    found = dict(index.search("x y", 5))
    assert found == pytest.approx({"a": score(1, 3, 2) + score(2, 3, 1), "b": score(1, 1, 2)})
    assert index.search("x y", 1)[0][0] == "a"
