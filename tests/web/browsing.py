"""What tests of the page do in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Page = Any


def choose(page: Page, button: str, file: Path | list[Path]) -> None:
    with page.expect_file_chooser() as chooser:
        page.click(button)
    chooser.value.set_files(file)
