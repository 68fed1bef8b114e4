"""PlanWorld in turns: what planners learn is what the program shows them, and nothing else is learnt."""

from __future__ import annotations

from random import Random

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer as Words

from lightwork.agents.chat_model import Message
from lightwork.agents.dependencies import Provenance
from lightwork.agents.layering import layered
from lightwork.agents.replies import message_dict
from lightwork.agents.trajectories import Node, Trajectory, answer_path, example, samples
from lightwork.agents.worlds.plan_world import SYLLABLES, PlanWorld
from lightwork.agents.worlds.turns import (
    LEVELS,
    WORDS,
    Comparisons,
    TurnLessons,
    messages,
    serial,
)
from lightwork.errors import UsageError
from lightwork.models import resolve
from lightwork.models.spec import ModelSpec, Rope
from lightwork.models.tokenizer import Tokenizer
from lightwork.runtime.kernel import Kernel
from lightwork.train.initial import initial_weights
from lightwork.train.pretrain import Batch, predict
from lightwork.train.vocabulary import build_tokenizer, save_tokenizer

WORLD = Comparisons(world=PlanWorld())


@pytest.fixture(scope="module")
def words() -> Words:
    return build_tokenizer(WORDS, SYLLABLES)


@pytest.fixture(scope="module")
def tokenizer(words: Words, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("turns")
    save_tokenizer(words, folder, 2048)
    return Tokenizer(folder)


def convert(trajectory: Trajectory) -> Trajectory | None:
    found = Kernel().run(layered(trajectory, Provenance()))
    return found if isinstance(found, Trajectory) else None


def test_the_vocabulary_goes_on_from_the_built_in_planners(words: Words):
    known = Words.from_file(str(resolve("tiny:llama") / "tokenizer.json")).get_vocab()
    assert known.items() <= words.get_vocab().items()
    assert len(words.encode("3. 198").ids) == len(words.encode("3. e17").ids) == 2


def test_questions_have_something_to_do_at_once():
    rng = Random(0)
    turns = calls = 0
    for i in range(200):
        one = WORLD.sample(rng, LEVELS[i % 2])
        found = convert(serial(one))
        if found is not None:
            assert len(found.turns) in (1, 2, 3)
            turns += len(found.turns) + 1
            calls += len(found.steps) + 1
        values = [v for step in serial(one).steps for v in step.call.arguments.values() if isinstance(v, int)]
        assert all(0 <= value <= 198 for value in values)
    assert turns / calls < 0.7


def test_a_chat_that_is_learnt_is_what_the_template_writes(words: Words, tokenizer: Tokenizer):
    lessons = TurnLessons(
        tokenizer=words, rng=Random(1), world=WORLD, convert=lambda one: one, batch_size=1, seq_len=600
    )
    batch = next(iter(lessons))
    rng = Random(1)
    names = WORLD.catalogue(rng)
    said: list[Message] = []
    for i in range(3):
        one = WORLD.sample(rng, rng.choice(LEVELS), names)
        asked = one.prompt if i == 0 else f"question: {one.question}"
        said += [Message("user", asked), *messages(serial(one), one.tools)]
    text = tokenizer.chat_text([message_dict(m) for m in said], add_generation_prompt=False)
    tokens = tokenizer.encode(text)
    assert batch.tokens_BT[0, : len(tokens)].tolist() == tokens
    learnt = batch.tokens_BT[batch.scored_BT]
    answers = "".join(f"{m.content}<|end|>" for m in said if m.role == "assistant")
    assert words.decode(learnt.tolist(), skip_special_tokens=False).startswith(answers)


def test_a_chat_in_one_pass_is_learnt_as_its_samples_are(tokenizer: Tokenizer, words: Words):
    """The loss of all turns is that of the single-turn samples together: attention looks back only."""
    spec = ModelSpec(
        family="llama",
        vocab_size=words.get_vocab_size(),
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        head_size=16,
        ffn_size=32,
        max_len=1024,
        rope=Rope(theta=10_000.0),
        qkv_bias=True,
        out_bias=True,
        tied=True,
    )
    weights = initial_weights(spec, 0)

    def loss(tokens: list[int], scored: list[bool]) -> float:
        batch = Batch(
            tokens_BT=torch.tensor([tokens]),
            positions_BT=torch.arange(len(tokens))[None],
            scored_BT=torch.tensor([scored]),
        )
        return float(F.cross_entropy(*predict(weights, spec, batch), reduction="sum").detach())

    found = convert(serial(WORLD.sample(Random(2), 3)))
    assert found is not None
    parts = [example(sample, tokenizer) for sample in samples(found)]
    assert len(parts) == len(found.turns) + 1
    whole = parts[-1].tokens
    learnt = [False] * len(whole)
    for part in parts:
        assert whole[: len(part.tokens)] == part.tokens
        begin = part.predicted.index(True)
        learnt[begin : len(part.tokens)] = [True] * (len(part.tokens) - begin)
    apart = sum(loss(part.tokens, part.predicted) for part in parts)
    assert loss(whole, learnt) == pytest.approx(apart, rel=1e-4)


def test_of_a_search_only_the_way_to_the_answer_is_kept():
    one = serial(WORLD.sample(Random(3), 3))
    first, second, *_ = one.steps
    end = Node(thought="I know.", answer="42")
    tree = Node(
        children=(
            Node("A dead end.", first, children=(Node("Deeper.", second),)),
            Node("Better.", second, children=(Node("And then.", first, children=(end, Node(answer="43"))),)),
        )
    )
    found = answer_path("?", tree)
    assert [(turn.thought, turn.seen) for turn in found.turns] == [
        ("Better.", (second,)),
        ("And then.", (first,)),
    ]
    assert (found.answer, found.thought) == ("42", "I know.")
    with pytest.raises(UsageError, match="no answer"):
        answer_path("?", Node(children=(Node("A dead end.", first),)))
