"""Train the built-in models, tiny:llama and tiny:draft, from nothing: tokenizer, weights, recipe and held-out
score.

    python scripts/train_tiny.py                    # both, into lightwork/models/builtin
    python scripts/train_tiny.py --only draft       # one; two processes can train both at once

Same seed, same torch version and one thread: same weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import click
import torch
from tokenizers import Tokenizer

from lightwork.agents.worlds.lessons import WORDS, Lessons, chat
from lightwork.agents.worlds.plan_world import SYLLABLES, PlanWorld
from lightwork.agents.worlds.score import Score, exact_share, score, wilson
from lightwork.models.checkpoint import Checkpoint
from lightwork.models.spec import ModelSpec, Rope
from lightwork.models.weights import Weights, from_checkpoint
from lightwork.train.export import save_model
from lightwork.train.initial import initial_weights
from lightwork.train.pretrain import Batch, Settings, pretrain
from lightwork.train.vocabulary import build_tokenizer

BUILTIN = Path(__file__).parent.parent / "lightwork" / "models" / "builtin"
LEVELS = (1, 2, 3)
BEYOND = 4  # scored, never trained
HELD_OUT_CHATS, HELD_OUT_TOKENS = 24, 256
WATCH_EVERY, WATCH_QUESTIONS, RAISE_AT = 100, 40, 0.85
SCORE_QUESTIONS = {1: 400, 2: 400, 3: 400, BEYOND: 100}
SCORE_SEED = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All that the weights depend on besides the code."""

    hidden_size: int
    num_layers: int
    num_heads: int
    ffn_size: int
    phases: tuple[Settings, ...]
    batch_size: int = 8
    seq_len: int = 256
    seed: int = 0

    def spec(self, vocab_size: int, name: str) -> ModelSpec:
        return ModelSpec(
            name=name,
            family="llama",
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_heads,
            head_size=self.hidden_size // self.num_heads,
            ffn_size=self.ffn_size,
            max_len=2048,
            rope=Rope(theta=500_000.0),
            qkv_bias=True,
            out_bias=True,
            tied=True,
        )


RECIPES = {
    "llama": Recipe(
        hidden_size=96,
        num_layers=9,
        num_heads=3,
        ffn_size=256,
        phases=(
            Settings(steps=3200, stop=1000),
            Settings(steps=900, learning_rate=1.5e-3, warmup_steps=20),
            Settings(steps=600, learning_rate=1e-3, warmup_steps=20),
        ),
    ),
    "draft": Recipe(
        hidden_size=96,
        num_layers=2,
        num_heads=3,
        ffn_size=192,
        phases=(Settings(steps=3200, stop=1500), Settings(steps=500, learning_rate=1.5e-3, warmup_steps=20)),
    ),
}


@click.command()
@click.option("--only", type=click.Choice(sorted(RECIPES)), help="Train one model.")
@click.option("--out", type=click.Path(path_type=Path), default=BUILTIN, help="Folder of the model folders.")
@click.option("--resume", is_flag=True, help="Go on after the phases that the folder's recipe.json lists.")
def main(only: str | None, out: Path, resume: bool) -> None:
    """Train the built-in models and write them with their recipes."""
    torch.set_num_threads(1)
    tokenizer = build_tokenizer(WORDS, SYLLABLES)
    for name, recipe in RECIPES.items():
        if only in (None, name):
            make(name, recipe, tokenizer, out / name, resume)


def make(name: str, recipe: Recipe, tokenizer: Tokenizer, folder: Path, resume: bool) -> None:
    """Train one model phase by phase, each from the weights that the one before wrote, and score it."""
    spec = recipe.spec(tokenizer.get_vocab_size(), name)
    report = json.loads((folder / "recipe.json").read_text()) if resume else {"phases": []}
    for phase in range(len(report["phases"]), len(recipe.phases)):
        weights = read(folder, spec) if phase else initial_weights(spec, recipe.seed)
        for tensor in weights.tensors():
            tensor.requires_grad_(True)
        done = train(name, weights, recipe, spec, tokenizer, report["phases"])
        save_model(folder, weights, spec, tokenizer)
        report = describe(name, recipe, spec, [*report["phases"], done])
        write(folder, report)
    weights = read(folder, spec)
    scores = [score(weights, spec, tokenizer, level, n, SCORE_SEED) for level, n in SCORE_QUESTIONS.items()]
    write_held_out(folder, tokenizer)
    write(folder, report | {"scores": [row(s) for s in scores]})
    click.echo("\n".join(f"{name} {s}" for s in scores))


def train(
    name: str, weights: Weights, recipe: Recipe, spec: ModelSpec, tokenizer: Tokenizer, before: list[Any]
) -> dict[str, Any]:
    """One phase of training, in place. Returns what is to be remembered of it."""
    lessons = Lessons(
        tokenizer=tokenizer,
        rng=Random(f"train {recipe.seed}" + (f" phase {len(before)}" if before else "")),
        world=PlanWorld(split="train"),
        batch_size=recipe.batch_size,
        seq_len=recipe.seq_len,
        max_len=spec.max_len,
        top=before[-1]["top_level"] if before else 1,
    )
    digest, raised, tokens = hashlib.sha256(), {}, 0
    for progress in pretrain(weights, spec, hashed(lessons, digest), recipe.phases[len(before)]):
        tokens = progress.tokens
        if (progress.step + 1) % WATCH_EVERY == 0:
            raised |= watch(name, weights, spec, lessons, progress.step + 1, progress.loss)
    return {
        "tokens": tokens,
        "data_sha256": digest.hexdigest(),
        "level_raised_at_step": raised,
        "top_level": lessons.top,
    }


def read(folder: Path, spec: ModelSpec) -> Weights:
    """The stored weights, in float32."""
    written = Checkpoint(folder)
    return from_checkpoint(spec, lambda key, shape: written.get(key, shape).float())


def describe(name: str, recipe: Recipe, spec: ModelSpec, phases: list[Any]) -> dict[str, Any]:
    """recipe.json without its scores."""
    return {
        "command": f"python scripts/train_tiny.py --only {name}",
        **asdict(recipe),
        "settings": [asdict(s) for s in recipe.phases],
        "phases": phases,
        "parameters": spec.num_params,
        "tokens": sum(p["tokens"] for p in phases),
        "data": "PlanWorld, training split; a sequence is one catalogue and questions about it",
        "longest_sequence_tokens": recipe.seq_len,
        "torch": torch.__version__,
        "stored_as": "float16",
        "score": "PlanWorld, held-out tool names, greedy, from the stored weights computed in float32",
    }


def write(folder: Path, report: dict[str, Any]) -> None:
    (folder / "recipe.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def write_held_out(folder: Path, tokenizer: Tokenizer) -> None:
    """Chats about tools that were never trained on: what `--use Quant` reports perplexity of."""
    rng, world = Random("held out"), PlanWorld(split="heldout")
    texts = []
    for _ in range(HELD_OUT_CHATS):
        tokens, scored, _ = chat(tokenizer, world.dialogue(rng, rng.choices(LEVELS, k=10)))
        texts.append(
            {"tokens": tokens[:HELD_OUT_TOKENS], "scored": [int(s) for s in scored[:HELD_OUT_TOKENS]]}
        )
    (folder / "held_out.json").write_text(json.dumps({"texts": texts}) + "\n", encoding="utf-8")


def hashed(lessons: Lessons, digest: hashlib._Hash) -> Iterator[Batch]:
    """The batches, and their tokens into a digest."""
    for batch in lessons:
        digest.update(batch.tokens_BT.numpy().tobytes())
        yield batch


def watch(
    name: str, weights: Weights, spec: ModelSpec, lessons: Lessons, step: int, loss: float
) -> dict[str, int]:
    """Print the score so far; raise the hardest level when it is learnt well enough."""
    seen = [exact_share(weights, spec, lessons.tokenizer, level, WATCH_QUESTIONS, seed=1) for level in LEVELS]
    exact = " ".join(f"{share:.2f}" for share in seen)
    click.echo(f"{name} step {step} loss {loss:.4f} top level {lessons.top} exact by level {exact}")
    if lessons.top < max(LEVELS) and seen[lessons.top - 1] >= RAISE_AT:
        lessons.top += 1
        return {str(lessons.top): step}
    return {}


def row(s: Score) -> dict[str, Any]:
    """A score with its intervals, for the recipe."""
    low, high = wilson(s.exact, s.questions)
    return asdict(s) | {
        "exact_share": round(s.exact / s.questions, 4),
        "exact_wilson_95": [round(low, 4), round(high, 4)],
        "answered_share": round(s.answered / s.questions, 4),
        "token_share": round(s.token_hits / s.tokens, 4),
        "trained": s.level in LEVELS,
    }


if __name__ == "__main__":
    main()
