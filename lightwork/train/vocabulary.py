"""A tokenizer over given words, with bytes for everything else, in Hugging Face layout.

Words are whole tokens. Names are put together from syllables by byte-pair merges (Sennrich et al., 2016), at
word starts with their space. All other text falls into the 256 bytes, so every Unicode string is encoded and
decoded without loss.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from lightwork.errors import UsageError
from lightwork.home import save

BOS, END = "<|bos|>", "<|end|>"
ROLES = ("system", "user", "assistant", "tool")
SPECIAL = (BOS, END, *(f"<|{role}|>" for role in ROLES))
SPLIT = r" join\(\)|\n?[0-9]+\.|\n-|\n| ?\$?[A-Za-z0-9]+:?| ?[^A-Za-z0-9\s]+|\s"
TEMPLATE = (
    "{{ bos_token }}{% if tools %}{{ '<|system|>' }}{% for tool in tools %}"
    "{{ (tool.function if tool.function is defined else tool) | tojson + '\\n' }}{% endfor %}"
    '{{ \'Call them as <tool_call>{"name": NAME, "arguments": {}}</tool_call><|end|>\' }}{% endif %}'
    "{% for message in messages %}"
    "{% if message['role'] not in ['" + "', '".join(ROLES) + "'] %}"
    "{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim }}"
    "{% for call in message.tool_calls or [] %}"
    "{{ '<tool_call>\\n' + call.function | tojson + '\\n</tool_call>' }}{% endfor %}"
    "{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer(words: Sequence[str], syllables: Sequence[str]) -> Tokenizer:
    """A tokenizer of the special tokens, 256 bytes, syllables of two ASCII letters, and words.

    words: tokens as they stand in text, with their space or newline. Raises UsageError for other syllables.
    """
    if not all(len(s) == 2 and s.isascii() and s.isalpha() for s in syllables):
        raise UsageError("syllables must be two ASCII letters", expected="like 'ka'")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(s[0], s[1]) for s in syllables] + [("Ġ", s) for s in syllables]
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    whole = [level.pre_tokenize_str(w)[0][0] for w in words]
    vocabulary = list(dict.fromkeys([*SPECIAL, *alphabet, *(a + b for a, b in merges), *whole]))
    tokenizer = Tokenizer(
        models.BPE(vocab={t: i for i, t in enumerate(vocabulary)}, merges=merges, ignore_merges=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLIT), "isolated"), level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_len: int) -> None:
    """Write tokenizer.json and tokenizer_config.json, the chat template in it."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END,
        "pad_token": END,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_len,
        "chat_template": TEMPLATE,
    }
    text = json.dumps(config, indent=2) + "\n"
    save(folder / "tokenizer.json", lambda part: part.write_text(tokenizer.to_str(pretty=True), "utf-8"))
    save(folder / "tokenizer_config.json", lambda part: part.write_text(text, encoding="utf-8"))
