"""Parallel prompt decoding: probes are seen by nobody, and texts stay what they are."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba")
pytest.importorskip("torch")

from lightwork import models
from lightwork.decode.proposers import Draft, Target
from lightwork.decode.proposers.ppd import PPD, PromptDrafter, most_likely
from lightwork.decode.sampling import Floats, Pick, Sampling, pick
from lightwork.decode.verifiers import Verdict
from lightwork.errors import CheckpointError, InvariantError, LightworkError, RangeError, SpecError
from lightwork.kernels.rows import Rows
from lightwork.models.compiled import CompiledModel
from lightwork.models.model import Model
from lightwork.models.precisions.stored import Stored
from lightwork.models.prompt_tokens import FILE, PromptTokens, read_prompt_tokens, write_prompt_tokens
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.serve.opening import open_one
from lightwork.serve.plan import Plan
from lightwork.serve.schedulers import Step
from lightwork.serve.sequence import Request
from lightwork.serve.simulate import run_load
from lightwork.testing import tiny_checkpoint

USUAL = np.array([[0.5, 0.2, 0.1], [0.4, 0.2, 0.1], [0.3, 0.2, 0.1]])
PAGE = 64


@dataclass
class Text:
    tokens: list[int]
    id: int = 0
    prompt_len: int = 1
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.0))


def draft_rows(text: Sequence[int], draft: Draft) -> Rows:
    """A text in one page and its draft in the next, every row scored."""
    tokens = np.array([*text, *draft.tokens])
    known, index = len(text), np.arange(len(tokens))
    positions = np.array([*range(known), *(known - 1 + depth for depth in draft.depths())])
    return Rows(
        tokens=tokens,
        positions=positions,
        slots=index,
        seqs=np.zeros(len(tokens), np.int32),
        index=index,
        ancestors=np.array([0] * known + draft.ancestors(), np.uint64),
        known=np.array([known]),
        tables=np.array([[0, 1]], np.int32),
        scored=index,
    )


TEXT = [5, 9, 200, 31, 7, 77]
GUESSES = Draft((3, 4, 8), (-1, -1, 0))
PROBED = Draft((3, 4, 8, -1, -2, -1, -3), (-1, -1, 0, -1, 3, 2, 1))


@pytest.fixture(scope="module", params=["llama", "mistral", "gpt2", "mixtral"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp(request.param)
    return tiny_checkpoint(made, request.param)


def loaded(folder: Path) -> tuple[CompiledModel, Model]:
    compiled = models.load_compiled(str(folder), precision=Stored())
    compiled.set_threads(1)
    return compiled, models.load(str(folder))


def test_no_row_sees_probes_and_probes_are_their_embeddings(folder: Path) -> None:
    """Guesses have the same bits with probes among them; a probe is the token whose embedding it has."""
    compiled, torch_model = loaded(folder)
    embed = torch_model.weights.embed.numpy()
    probes = embed[[17, 90, 40]].copy()
    as_tokens = {-1: 17, -2: 90, -3: 40}
    named = Draft(tuple(as_tokens.get(t, t) for t in PROBED.tokens), PROBED.parents)
    found = {}
    for model in (compiled, torch_model):
        model.set_probes(probes)
        alone, probed, known = (
            np.array(model.logits(draft_rows(TEXT, draft), model.new_kv(2, PAGE)))
            for draft in (GUESSES, PROBED, named)
        )
        real = len(TEXT) + len(GUESSES)
        if model is compiled:
            assert np.array_equal(alone, probed[:real])
        np.testing.assert_allclose(alone, probed[:real], atol=1e-5, rtol=1e-5)
        assert np.array_equal(probed, known)
        found[model] = probed
    np.testing.assert_allclose(found[compiled], found[torch_model], atol=2e-4, rtol=2e-4)
    compiled.close()


def test_a_probe_without_an_embedding_is_refused() -> None:
    compiled = models.load_compiled("tiny:llama", precision=Stored())
    compiled.set_probes(np.zeros((2, compiled.spec.hidden_size), np.float32))
    with pytest.raises(InvariantError, match="probes of"):
        compiled.set_probes(np.zeros((2, 7), np.float32))
    with pytest.raises(InvariantError, match="token is -3"):
        compiled.logits(draft_rows(TEXT, PROBED), compiled.new_kv(2))
    compiled.close()


def put_prompts(folder: Path, num: int = 3, seed: int = 0, virtual: int = 1) -> Path:
    """Random ones, said to be good."""
    spec = models.read_shape(str(folder))
    shape = (num * virtual, spec.hidden_size)
    embeddings = np.random.default_rng(seed).normal(0, 0.3, shape).astype(np.float32)
    write_prompt_tokens(folder / FILE, PromptTokens(embeddings, USUAL[:num]))
    return folder / FILE


def free(step: Step) -> float:
    return 1.0


def served(model: str, requests: Sequence[Request], *use: object) -> tuple[list[list[int]], int]:
    """Texts, and how many of their tokens were guessed."""
    plan = Plan(model=model, use=use, threads=1, max_len=300)
    engine, opened, _ = open_one(plan, Kernel(WallClock()), predict=free)
    try:
        seqs = run_load(engine, [0.0] * len(requests), requests)
        again = [Request(prompt=(*seq.tokens,), max_tokens=9, sampling=seq.sampling) for seq in seqs]
        after = run_load(engine, [0.0] * len(again), again)  # on keys and values that drafts have left
    finally:
        opened.close()
    engine.kv.check()
    assert engine.kv.free == engine.kv.total
    assert engine._drafting is None or engine._drafting.broken is None
    return [seq.tokens for seq in (*seqs, *after)], sum(seq.accepted for seq in seqs)


@pytest.mark.parametrize(("temperature", "virtual"), [(0.0, 1), (0.8, 1), (0.0, 2)])
def test_texts_are_those_of_plain_decoding(folder: Path, temperature: float, virtual: int) -> None:
    put_prompts(folder, virtual=virtual)
    how = Sampling(temperature=temperature, seed=3)
    rng = np.random.default_rng(0)
    requests = [
        Request(prompt=tuple(rng.integers(0, 256, 5 + 9 * i).tolist()), max_tokens=70, sampling=how)
        for i in range(3)
    ]
    assert served(str(folder), requests, PPD(k=12))[0] == served(str(folder), requests)[0]


def test_the_built_in_models_prompts_guess_its_answers() -> None:
    chat = "<|bos|><|user|>tools:\n- rating rapune\nquestion: rating of Oslo<|end|><|assistant|>"
    model = models.load_compiled("tiny:llama", precision=Stored())
    prompt, ends = model.tokenizer.encode(chat, add_special=False), frozenset(model.tokenizer.eos_ids)
    model.close()
    request = Request(prompt=tuple(prompt), max_tokens=60, sampling=Sampling(temperature=0.0), stop_ids=ends)
    ours, accepted = served("tiny:llama", [request], PPD())
    assert ours == served("tiny:llama", [request])[0]
    assert accepted > 0


def test_guesses_are_of_the_text_they_were_made_for() -> None:
    drafter = PromptDrafter(PPD(k=8), USUAL, most_likely)
    text = Text([1, 2, 3])
    (first,) = drafter.propose([text], [8])
    assert first == Draft((-1, -2, -3), (-1, 0, 1))
    probes = np.zeros((2, 10), np.float32)
    probes[0, [4, 7, 1]] = 3, 2, 1
    probes[1, [9, 8, 0]] = 3, 2, 1
    drafter.accept([text], [Verdict((Pick(6),), (), probes)])
    text.tokens.append(6)
    (draft,) = drafter.propose([text], [8])
    assert (draft.tokens[0], draft.parents[0]) == (4, -1)
    assert {t for t, d in zip(draft.tokens, draft.depths(), strict=True) if t >= 0 and d == 1} <= {4, 7, 1}
    assert {t for t, d in zip(draft.tokens, draft.depths(), strict=True) if t >= 0 and d == 2} <= {9, 8, 0}
    assert draft.depth() <= 2
    drafter.accept([text], [Verdict((Pick(4),), (), probes)])
    text.tokens += [4, 5]  # a step without a draft came between
    assert drafter.propose([text], [8]) == [first]
    drafter.accept([text], [Verdict((Pick(4),), (), probes)])
    drafter.forget(text.id)
    text.tokens.append(4)
    assert drafter.propose([text], [3]) == [first]


def test_what_virtual_tokens_of_a_prompt_say_is_averaged() -> None:
    drafter, text = PromptDrafter(PPD(k=9), USUAL, most_likely, virtual=2), Text([1, 2, 3])
    (first,) = drafter.propose([text], [9])
    assert first == Draft((-1, -2, -3, -4, -5, -6), (-1, -1, 0, 1, 2, 3))
    probes = np.zeros((4, 10), np.float32)
    probes[0, [4, 7]] = 5, 4
    probes[1, [7, 2]] = 4, 1
    probes[2, 9] = probes[3, 9] = 3
    drafter.accept([text], [Verdict((Pick(6),), (), probes)])
    text.tokens.append(6)
    (draft,) = drafter.propose([text], [9])
    assert draft.tokens[0] == 7  # 4 on average; 4 has 2.5
    assert draft.depth() >= 1
    assert len(draft) <= 9


def test_a_text_that_is_guessed_badly_gets_fewer_rows() -> None:
    drafter, text = PromptDrafter(PPD(k=8), USUAL, most_likely), Text([1])
    solved, probes = drafter.gain(text, 0.5), np.zeros((3, 10), np.float32)

    def decode(num: int, accepted: int) -> list[float]:
        for _ in range(num):
            drafter.propose([text], [8])
            drafter.accept([text], [Verdict((Pick(0),) * (accepted + 1), tuple(range(accepted)), probes)])
            text.tokens += [0] * (accepted + 1)
        return drafter.gain(text, 0.5)

    assert max(decode(50, 0)) < 0.2 * max(solved)
    assert decode(50, 3) == solved
    drafter.forget(text.id)


def test_sampled_text_is_guessed_with_its_own_noise() -> None:
    """If prompts say exactly what the target will, the first guess is what it will choose."""
    rng = np.random.default_rng(1)
    text = Text([1, 2, 3], sampling=Sampling(temperature=0.9, seed=11))
    scores: Floats = rng.normal(0, 2, (4, 50)).astype(np.float32)
    lists = most_likely(text, scores, 7, 3)
    chosen = [pick(scores_V, text.sampling, 7 + i, [], []).token for i, scores_V in enumerate(scores)]
    assert [best[0] for best in lists] == chosen
    assert most_likely(Text([1]), scores, 7, 2)[0] == [*np.argsort(-scores[0])[:2]]


def test_prompts_take_their_numbers_and_no_more(tmp_path: Path) -> None:
    spec = models.read_shape("tiny:llama")
    embeddings = np.ones((3, spec.hidden_size), np.float32)
    write_prompt_tokens(tmp_path / FILE, PromptTokens(embeddings, USUAL))
    found = read_prompt_tokens(tmp_path / FILE, spec)
    assert np.array_equal(found.embeddings_Pd, embeddings)
    assert found.accuracy_mR == pytest.approx(USUAL)
    assert found.virtual == 1
    header = int.from_bytes((tmp_path / FILE).read_bytes()[:8], "little")
    assert (tmp_path / FILE).stat().st_size == 8 + header + 3 * spec.hidden_size * 4
    write_prompt_tokens(tmp_path / FILE, PromptTokens(np.tile(embeddings, (4, 1)), USUAL))
    assert read_prompt_tokens(tmp_path / FILE, spec).virtual == 4


@pytest.mark.parametrize(
    ("embeddings", "accuracy"),
    [
        (np.ones((3, 8), np.float32), USUAL),
        (np.ones((3, 96), np.float64), USUAL),
        (np.full((3, 96), np.nan, np.float32), USUAL),
        (np.ones((2, 96), np.float32), USUAL),
        (np.ones((3, 96), np.float32), USUAL[:, ::-1]),
        (np.ones((3, 96), np.float32), 3 * USUAL),
        (np.ones((3, 96), np.float32), USUAL[:, :0]),
    ],
    ids=["width", "type", "numbers", "count", "order", "sum", "ranks"],
)
def test_prompts_of_another_model_or_none_are_refused(
    tmp_path: Path, embeddings: Floats, accuracy: Floats
) -> None:
    write_prompt_tokens(tmp_path / FILE, PromptTokens(embeddings, accuracy))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="prompt tokens"):
        read_prompt_tokens(tmp_path / FILE, models.read_shape("tiny:llama"))


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"on": "sim:a100", "use": ["PPD"]}, "is simulated"),
        ({"tp": 2, "use": ["PPD"]}, "in the passes of one model"),
        ({"use": ["Pearl(inner=PPD)"]}, "in the passes of one model"),
        ({"use": ["PPD(prompts='nowhere')"]}, "holds no prompt tokens"),
        ({"model": "tiny:draft", "use": ["PPD"]}, "holds no prompt tokens"),
    ],
    ids=["simulated", "cut", "pearl", "no file", "no prompts"],
)
def test_where_it_cannot_guess_it_says_so(plan: dict[str, object], said: str) -> None:
    with pytest.raises(LightworkError, match=said):
        open_one(Plan(**{"threads": 1, **plan}), Kernel(WallClock()))  # type: ignore[arg-type]


def test_a_target_without_probes_is_refused() -> None:
    with ThreadPoolExecutor(1) as beside, pytest.raises(SpecError, match="rows that are no tokens"):
        PPD().begin(Target(model="tiny:llama", on="cpu", max_seqs=1, max_len=99, beside=beside))


def test_keys_and_values_are_those_of_plain_decoding(tmp_path: Path) -> None:
    """Nothing of a probe or of a wrong guess is left, to the bit."""
    model = str(tiny_checkpoint(tmp_path))
    put_prompts(tmp_path)
    request = Request(prompt=(1, 2, 3), max_tokens=90, sampling=Sampling(temperature=0.0))
    pages = []
    for use in ((), (PPD(k=16),)):
        engine, opened, _ = open_one(Plan(model=model, use=use, threads=1), Kernel(WallClock()), predict=free)
        (seq,) = run_load(engine, [0.0], [request])
        assert engine.kv.attach(99, seq.tokens) >= PAGE
        pool, block = engine.runner.pool, engine.kv.table(99)[0]
        pages.append((seq.tokens, pool.keys[block].copy(), pool.values[block].copy()))
        opened.close()
    assert pages[0][0] == pages[1][0]
    np.testing.assert_array_equal(pages[0][1], pages[1][1])
    np.testing.assert_array_equal(pages[0][2], pages[1][2])


def test_rows_have_limits() -> None:
    with pytest.raises(RangeError, match="k=65"):
        PPD(k=65)
