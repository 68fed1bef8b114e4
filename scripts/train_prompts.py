"""Train prompt tokens of a built-in model (`--use PPD`) and write them beside its weights.

    python scripts/train_prompts.py                 # tiny:llama, a minute of one core

Same seed, same torch version and one thread: same embeddings.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import click
import numpy as np
import torch
from tokenizers import Tokenizer

from lightwork.agents.worlds.lessons import asked
from lightwork.agents.worlds.plan_world import PlanWorld
from lightwork.models import load, resolve
from lightwork.models.prompt_tokens import FILE, PromptTokens, write_prompt_tokens
from lightwork.serve.plan import Plan
from lightwork.train.own_texts import own_texts
from lightwork.train.prompt_tokens import SETTINGS, accuracy, as_batches, initial_prompts, train_prompts

TEXTS, JUDGED, LONGEST = 800, 200, 96
BATCH_SIZE = 8


@click.command()
@click.argument("model", default="tiny:llama")
@click.option("--num", default=3, help="Prompts.")
@click.option("--virtual", default=1, help="Virtual tokens of each, whose guesses are averaged.")
@click.option("--seed", default=0, help="Of texts and first embeddings.")
@click.option("--out", type=click.Path(path_type=Path), help="File; by default, beside the weights.")
def main(model: str, num: int, virtual: int, seed: int, out: Path | None) -> None:
    """Train on the model's answers to questions of PlanWorld, and measure on others."""
    torch.set_num_threads(1)
    found = load(model)
    texts = answers(model, "train", TEXTS, seed)
    judged = answers(model, "train", JUDGED, seed + 1)
    prompts = initial_prompts(found.weights, num * virtual, seed)
    batches = as_batches(texts, BATCH_SIZE, -(-SETTINGS.steps * BATCH_SIZE // len(texts)))
    for done in train_prompts(prompts, found.weights, found.spec, batches, virtual=virtual):
        if (done.step + 1) % 100 == 0:
            click.echo(f"step {done.step + 1} loss {done.loss:.4f}")
    judged_batches = as_batches(judged, BATCH_SIZE)
    right = accuracy(prompts, found.weights, found.spec, judged_batches, virtual=virtual)
    write_prompt_tokens(out or resolve(model) / FILE, PromptTokens(prompts.detach().numpy(), right))
    click.echo(np.array2string(right, precision=3))


def answers(model: str, split: str, num: int, seed: int) -> list[tuple[list[int], int]]:
    """Texts of the model's own, each with how many tokens of it were given."""
    tokenizer = Tokenizer.from_file(str(resolve(model) / "tokenizer.json"))
    given = asked(tokenizer, PlanWorld(split=split), Random(f"prompts {seed}"), num)
    _, seqs = own_texts(Plan(model=model, threads=1), given, LONGEST)
    return [(seq.tokens, seq.prompt_len) for seq in seqs]


if __name__ == "__main__":
    main()
