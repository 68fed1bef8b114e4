"""Completion in shells: the protocol that click speaks, and bash itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lightwork.cli._completion import _joined

NAME = "lightwork"


def ask(shell: str, *words: str) -> list[str]:
    """What the last of some words can become, as the shell is told; the words come as it sends them."""
    split = "\n" if shell in ("bash", "zsh") else " "
    told = {"_LIGHTWORK_COMPLETE": f"{shell}_complete", "COMP_WORDS": split.join((NAME, *words))}
    told |= {"COMP_CWORD": words[-1] if shell == "fish" else str(len(words))}
    done = subprocess.run(
        [sys.executable, "-m", "lightwork"],
        env=os.environ | told,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr
    return done.stdout.splitlines()


def values(shell: str, *words: str) -> list[str]:
    lines = ask(shell, *words)
    if shell == "bash":
        return [line.partition(",")[2] for line in lines]
    if shell == "zsh":  # type, value and help, a line each; colons before a help are escaped
        return [line.replace("\\:", ":") for line in lines[1::3]]
    return [line.partition(",")[2].partition("\t")[0] for line in lines]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_verbs_options_techniques_models_and_places_complete(shell: str) -> None:
    assert values(shell, "ser") == ["serve"]
    assert "--kv-memory" in values(shell, "serve", "--k")
    assert values(shell, "serve", "tiny", "--use", "Sar") == ["Sarathi"]
    assert {"PrefillDecode", "PrefillFirst"} <= {*values(shell, "techniques", "pre")}
    assert values(shell, "sim", "x", "--load", "Poi") == ["Poisson"]
    assert values(shell, "claims", "sara") == ["sarathi"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_names_with_colons_complete_where_words_are_whole(shell: str) -> None:
    assert values(shell, "serve", "tiny:l") == ["tiny:llama"]
    assert "shape:llama-3-8b" in values(shell, "sim", "shape:llama-3")
    assert values(shell, "sim", "x", "--on", "sim:h1") == ["sim:h100"]
    assert "cpu" in values(shell, "serve", "x", "--on", "c")


def test_readline_breaks_words_at_colons() -> None:
    assert values("bash", "serve", "tiny", ":", "l") == ["llama"]
    assert values("bash", "serve", "tiny", ":") == ["draft", "llama"]
    assert values("bash", "serve", "ti") == ["tiny:draft", "tiny:llama"]
    assert values("bash", "sim", "tiny", ":", "llama", "--on", "sim", ":", "h1") == ["h100"]
    assert "a100" in values("bash", "sim", "tiny", ":", "llama", "--on", "=", "sim", ":", "a")
    assert values("bash", "serve", "x", "--use", "CoServe(inner", "=", "Sar") == ["Sarathi"]


@pytest.mark.parametrize(
    ("words", "joined"),
    [
        ([], []),
        (["a", "b"], ["a", "b"]),
        (["tiny", ":", "llama", "--on", "=", "cpu"], ["tiny:llama", "--on=cpu"]),
        (["a", ":", ""], ["a:"]),
        (["a", ""], ["a", ""]),
    ],
)
def test_words_are_put_together_as_they_were_typed(words: list[str], joined: list[str]) -> None:
    assert _joined(words) == joined


@pytest.mark.multiproc
def test_bash_itself_completes(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    wrapper = tmp_path / NAME
    wrapper.write_text(f'#!{bash}\nexec {sys.executable} -m lightwork "$@"\n')
    wrapper.chmod(0o755)
    script = (
        'eval "$(_LIGHTWORK_COMPLETE=bash_source lightwork)"\n'
        "COMP_WORDS=(lightwork serve tiny : ll) COMP_CWORD=4\n"
        '_lightwork_completion lightwork\necho "${COMPREPLY[@]}"\n'
    )
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    done = subprocess.run(
        [bash, "--norc", "-c", script],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "llama\n", done.stderr
