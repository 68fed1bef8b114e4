"""The tokenizer of a GGUF file, rebuilt from its metadata.

Two kinds: "gpt2", byte-level BPE with its merges and the name of the rule that cuts text into words; "llama",
the BPE of SentencePiece, whose merges follow from the scores of its pieces, with single bytes for what no
piece covers. A file that holds its tokenizer.json (tokenizer.huggingface.json) is taken at its word.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from lightwork.errors import CheckpointError
from lightwork.models.gguf.container import Container, Value
from lightwork.models.spec import read_json
from lightwork.models.tokenizer import Tokenizer

HUGGING_FACE = "tokenizer.huggingface.json"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
MAX_TOKEN_LEN = 1024
"""Characters; merges are found by cutting a piece in every place."""

_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS = {"llama-bpe": _CUT % "{1,3}", "qwen2": _CUT % ""}
"""Regular expressions that cut text into words, by the name GGUF has for them: numbers of at most three
digits, and of one."""
ALIASES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2"}
BYTE_LEVEL = ("gpt-2", "smollm")


def read_vocabulary(file: Container) -> tuple[tokenizers.Tokenizer, dict[str, Any], dict[str, Any]]:
    """The tokenizer, and what tokenizer_config.json and generation_config.json would say of it.

    Raises CheckpointError if there is none, it is not supported, or it is damaged.
    """
    tokens = file.texts("tokenizer.ggml.tokens")
    roles = _special(file, tokens)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is not None and len(tokens) > embedding.shape[0]:
        raise CheckpointError(
            f"{file.path} has {len(tokens)} tokens and {embedding.shape[0]} rows of embedding",
            expected="a row for each token",
            fix="convert it again",
        )
    try:
        if HUGGING_FACE in file.metadata:
            tokenizer = tokenizers.Tokenizer.from_str(file.text(HUGGING_FACE))
        else:
            tokenizer = _build(file, tokens, roles)
    except CheckpointError:
        raise
    except Exception as error:  # the library raises plain Exception for tokens that do not fit together
        raise CheckpointError(
            f"the tokenizer of {file.path} cannot be built: {error}",
            expected="tokens and merges that fit together",
            fix="copy the file again",
        ) from error
    config: dict[str, Any] = {f"{role}_token": tokens[i] for role, i in roles.items()}
    if "tokenizer.chat_template" in file.metadata:
        config["chat_template"] = file.text("tokenizer.chat_template")
    ends = [roles[r] for r in ("eos", "eot", "eom") if r in roles]
    return tokenizer, config, {"eos_token_id": ends} if ends else {}


def _special(file: Container, tokens: list[str]) -> dict[str, int]:
    """Token ids by role: bos, eos, eot (end of turn), eom (end of message), unk, pad."""
    names = {"bos": "bos", "eos": "eos", "eot": "eot", "eom": "eom", "unk": "unknown", "pad": "padding"}
    roles = {}
    for role, name in names.items():
        key = f"tokenizer.ggml.{name}_token_id"
        if key in file.metadata:
            roles[role] = file.integer(key)
            if roles[role] >= len(tokens):
                raise CheckpointError(
                    f"{key} of {file.path} is {roles[role]}",
                    expected=f"less than {len(tokens)}, the number of tokens",
                    fix="copy the file again",
                )
    return roles


def _build(file: Container, tokens: list[str], roles: dict[str, int]) -> tokenizers.Tokenizer:
    kind = file.text("tokenizer.ggml.model")
    if kind == "gpt2":
        tokenizer, leads = _byte_level(file, tokens)
    elif kind == "llama":
        tokenizer, leads = _sentencepiece(file, tokens, roles), True
    else:
        raise _unsupported(f"a tokenizer of kind {kind!r}", "gpt2 or llama")
    types = file.numbers("tokenizer.ggml.token_type", len(tokens)).tolist()
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind != USER_DEFINED, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind in (UNKNOWN, CONTROL, USER_DEFINED) and token
        ]
    )
    first = file.flag("tokenizer.ggml.add_bos_token", leads) and "bos" in roles
    last = file.flag("tokenizer.ggml.add_eos_token", False) and "eos" in roles
    around = [tokens[roles[r]] for r, wanted in (("bos", first), ("eos", last)) if wanted]
    if around:
        parts = ([around[0]] if first else []) + ["$A"] + ([around[-1]] if last else [])
        ids = [(t, tokens.index(t)) for t in dict.fromkeys(around)]
        tokenizer.post_processor = processors.TemplateProcessing(single=parts, special_tokens=ids)
    return tokenizer


def _byte_level(file: Container, tokens: list[str]) -> tuple[tokenizers.Tokenizer, bool]:
    """Also whether texts begin with bos when the file does not say."""
    rule = file.text("tokenizer.ggml.pre", "default")
    rule = ALIASES.get(rule, rule)
    if rule not in WORDS and rule not in BYTE_LEVEL:
        raise _unsupported(f"text cut into words by the rule {rule!r}", ", ".join([*WORDS, *BYTE_LEVEL]))
    merges = [_pair(file, merge) for merge in file.texts("tokenizer.ggml.merges")]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab=_ids(tokens), merges=merges, ignore_merges=rule == "llama-bpe")
    )
    if rule == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    steps: list[pre_tokenizers.PreTokenizer] = []
    if rule in WORDS:
        steps.append(pre_tokenizers.Split(Regex(WORDS[rule]), "isolated"))
    if rule == "smollm":
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule in BYTE_LEVEL))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, rule == "llama-bpe"


def _pair(file: Container, merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    if not left or not right or " " in right:
        raise CheckpointError(
            f"{file.path} has the merge {merge[:60]!r}", expected="two tokens", fix="copy the file again"
        )
    return left, right


def _sentencepiece(file: Container, tokens: list[str], roles: dict[str, int]) -> tokenizers.Tokenizer:
    scores = file.numbers("tokenizer.ggml.scores", len(tokens)).tolist()
    unknown = tokens[roles["unk"]] if "unk" in roles else None
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            vocab=_ids(tokens),
            merges=_merges(file, tokens, scores),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaced = normalizers.Replace(" ", SPACE)
    if file.flag("tokenizer.ggml.add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaced])
        strip = [decoders.Strip(" ", left=1)]
    else:
        tokenizer.normalizer, strip = spaced, []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _merges(file: Container, tokens: list[str], scores: list[float]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, best score first: the order SentencePiece joins them in."""
    ids = _ids(tokens)
    found = []
    for piece, score in zip(tokens, scores, strict=True):
        if len(piece) > MAX_TOKEN_LEN:
            raise CheckpointError(
                f"{file.path} has a token of {len(piece)} characters",
                expected=f"at most {MAX_TOKEN_LEN}",
                fix="copy the file again",
            )
        cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        pairs = [(left, right) for left, right in cuts if left in ids and right in ids]
        found += [(-score, ids[left], ids[right], left, right) for left, right in pairs]
    return [(left, right) for *_, left, right in sorted(found)]


def vocabulary_metadata(folder: Path, vocab_size: int) -> dict[str, Value]:
    """The metadata of a folder's byte-level BPE tokenizer, filled up to the rows of the embedding.

    A rule that GGUF has no name for is called "default": llama.cpp then cuts words its own way, and this
    project goes by the tokenizer.json inside. Raises CheckpointError for another kind of tokenizer.
    """
    tokenizer = Tokenizer(folder)
    whole = read_json(folder, "tokenizer.json")
    model, added = whole.get("model", {}), {t["id"]: t for t in whole.get("added_tokens", [])}
    if model.get("type") != "BPE" or "ByteLevel" not in json.dumps(whole.get("decoder")):
        raise _unsupported(f"a tokenizer of kind {model.get('type')!r}", "byte-level BPE")
    by_id = {i: token for token, i in model["vocab"].items()} | {i: t["content"] for i, t in added.items()}
    kinds = {i: CONTROL if t.get("special") else USER_DEFINED for i, t in added.items()}
    ids = {token: i for i, token in by_id.items()}
    merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges", [])]
    metadata: dict[str, Value] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _rule(whole),
        "tokenizer.ggml.tokens": [by_id.get(i, f"[PAD{i}]") for i in range(vocab_size)],
        "tokenizer.ggml.token_type": np.array(
            [kinds.get(i, NORMAL if i in by_id else UNUSED) for i in range(vocab_size)], "<i4"
        ),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.add_bos_token": bool(tokenizer.encode("", add_special=True)),
        HUGGING_FACE: (folder / "tokenizer.json").read_text(encoding="utf-8"),
    }
    for role, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        if f"{role}_token" in tokenizer.special:
            metadata[f"tokenizer.ggml.{name}_token_id"] = ids[tokenizer.special[f"{role}_token"]]
    if tokenizer.chat_template is not None:
        metadata["tokenizer.chat_template"] = tokenizer.chat_template
    return metadata


def _rule(whole: Mapping[str, Any]) -> str:
    """What GGUF calls the rule by which a tokenizer.json cuts text into words."""
    steps = whole.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    patterns = [s["pattern"].get("Regex") for s in steps if s.get("type") == "Split"]
    for name, pattern in WORDS.items():
        if patterns == [pattern]:
            return name
    plain = not patterns and [s.get("use_regex") for s in steps] == [True]
    return "gpt-2" if plain else "default"


def _ids(tokens: list[str]) -> dict[str, int]:
    return {token: i for i, token in enumerate(tokens)}


def _unsupported(what: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"this file has {what}, which is not supported",
        expected=expected,
        fix="the Hugging Face folder of the same model",
    )
