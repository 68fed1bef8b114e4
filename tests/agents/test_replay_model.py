"""A run recorded and said again: equal replies at equal times, and nothing that was not recorded."""

from __future__ import annotations

from pathlib import Path

import pytest
from known_replies import WEATHER, ask, asked, decides, uses_a_tool

from lightwork.agents.chat_model import ChatModel, ChatRequest, Message, Reply
from lightwork.agents.engine_model import open_model
from lightwork.agents.profile_model import Profile, ProfileModel
from lightwork.agents.replay_model import Recording, ReplayModel, read_transcript
from lightwork.errors import UsageError
from lightwork.runtime.kernel import Kernel
from lightwork.serve.plan import Plan

PROFILE = Profile(ttft_s=0.5, tokens_per_s=20, jitter=0.2)


async def two_turns(model: ChatModel) -> list[Reply]:
    """A call of a tool, and what is said of its answer."""
    question = Message("user", "Oslo")
    first = await model.stream(ChatRequest((question,), (WEATHER,))).reply()
    more = (question, first.message(), Message("tool", "rain", call_id=first.calls[0].id))
    return [first, await model.stream(ChatRequest(more, (WEATHER,))).reply()]


def test_a_recorded_run_is_repeated_to_the_moment(tmp_path: Path):
    kernel = Kernel()
    recording = Recording(ProfileModel(kernel, PROFILE, uses_a_tool), kernel)
    first = kernel.run(two_turns(recording))
    recording.save(tmp_path / "run.jsonl")
    read = read_transcript(tmp_path / "run.jsonl")
    assert [exchange.reply for exchange in read] == first
    again = Kernel()
    model = ReplayModel(again, read)
    assert again.run(two_turns(model)) == first
    assert again.now() == pytest.approx(kernel.now())
    assert model.num_left == 0
    at_once = Kernel()
    assert at_once.run(two_turns(ReplayModel(at_once, read, timed=False))) == first
    assert at_once.now() == 0.0


def test_log_probabilities_are_kept(tmp_path: Path):
    kernel = Kernel()
    recording = Recording(open_model(Plan(max_len=1024), kernel, decides), kernel)
    replies = ask(kernel, recording, asked("?", logprobs=3), asked("?", logprobs=3, temperature=1.0))
    recording.save(tmp_path / "run.jsonl")
    kept = [exchange.reply for exchange in read_transcript(tmp_path / "run.jsonl")]
    assert sorted(kept, key=lambda reply: reply.text) == sorted(replies, key=lambda reply: reply.text)


def test_what_was_not_asked_then_has_no_reply():
    kernel = Kernel()
    recording = Recording(ProfileModel(kernel, Profile(), decides), kernel)
    ask(kernel, recording, asked("?"))
    model = ReplayModel(kernel, recording.exchanges)
    with pytest.raises(UsageError, match="no reply to 'and now"):
        ask(kernel, model, asked("and now?"))
    ask(kernel, model, asked("?"))
    with pytest.raises(UsageError, match="no further reply"):
        ask(kernel, model, asked("?"))


def test_a_cancelled_reply_is_not_kept_and_frees_its_model():
    kernel = Kernel()
    inner = ProfileModel(kernel, Profile(ttft_s=1.0, concurrency=1), decides)
    recording = Recording(inner, kernel)

    async def main() -> None:
        stream = recording.stream(asked("?"))
        await kernel.sleep(0.25)
        stream.cancel()
        await recording.stream(asked("!")).reply()

    kernel.run(main())
    assert kernel.now() == pytest.approx(1.25)
    assert [exchange.request for exchange in recording.exchanges] == [asked("!")]


def test_what_is_no_transcript_is_refused(tmp_path: Path):
    (tmp_path / "run.jsonl").write_text('{"request": {}}\n')
    with pytest.raises(UsageError, match="line 1"):
        read_transcript(tmp_path / "run.jsonl")
