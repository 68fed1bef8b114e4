"""Training beside serving: every slice once and in order, steps as short as asked, texts as without."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from engines import UnitCost, expected, next_token, request
from hypothesis import given
from hypothesis import strategies as st

from lightwork.errors import CheckpointError, RangeError
from lightwork.memory.kv import KVCache
from lightwork.models.adapters import Adapter
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.trace import Span, Trace
from lightwork.serve.engine import Engine
from lightwork.serve.schedulers import Step
from lightwork.serve.schedulers.co_serve import CoServe
from lightwork.serve.schedulers.fast_switch import FastSwitch
from lightwork.serve.schedulers.prefix_groups import PrefixGroups
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.sequence import Limits
from lightwork.serve.simulate import run_load
from lightwork.serve.simulated_runner import SimulatedRunner, StepCost
from lightwork.serve.training import Slice, Training, Update, window
from lightwork.serve.training_cost import TrainingCost
from lightwork.serve.training_runner import TrainingRunner

LAYERS = 4


def price() -> TrainingCost:
    return TrainingCost(
        rows=UnitCost(), num_layers=LAYERS, forward=(0.001, 0.001), back=(0.001, 0.003), head=(0.001, 0.002)
    )


def stages(piece: Slice) -> int:
    return 2 * LAYERS - piece.layer if piece.back else piece.layer


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4), limits=st.data())
def test_every_token_passes_every_layer_once_each_way(lengths: list[int], limits: st.DataObject) -> None:
    training, seen = Training(lengths, LAYERS), []
    while not training.finished:
        limit = limits.draw(st.integers(1, 100))
        slices = training.ahead(limit)
        assert 0 < sum(piece.count for piece in slices) <= limit
        training.move(slices)
        seen += slices
    for length in lengths:
        for stage in range(2 * LAYERS + 1):
            tokens: list[int] = []
            while len(tokens) < length:
                piece = seen.pop(0)
                assert stages(piece) == stage
                window = range(piece.start, piece.start + piece.count)
                tokens += reversed(window) if piece.back else window
            assert tokens == [*reversed(range(length))] if stage > LAYERS else [*range(length)]
    assert not seen


class Counting:
    """A trainer that notes what it is told, and has an update per sequence. fail_at: raises then. epoch:
    sequences after which there is an adapter to serve; 0 for none."""

    num_layers = LAYERS

    def __init__(self, lengths: Sequence[int], fail_at: int = 1 << 30, epoch: int = 0) -> None:
        self.lengths, self.fail_at, self.epoch = lengths, fail_at, epoch
        self.seen: list[Slice] = []
        self.updates = self.due = 0
        self.closed = False

    def run(self, slices: Sequence[Slice]) -> list[Update]:
        self.seen += slices
        if len(self.seen) > self.fail_at:
            raise ArithmeticError("the loss is nan")
        return [self._update() for piece in slices if piece.back and piece.layer == piece.start == 0]

    def _update(self) -> Update:
        self.updates += 1
        self.due += bool(self.epoch) and self.updates % self.epoch == 0
        return Update(self.updates, 1 / self.updates, sum(self.lengths[: self.updates]))

    def rehearsal(self, length: int) -> Callable[[Slice], object]:
        return lambda piece: None

    def take(self) -> Adapter | None:
        due, self.due = self.due, 0
        return Adapter(name="mine", deltas={}) if due else None

    def keep(self) -> Update | None:
        return None

    def close(self) -> None:
        self.closed = True


def make(scheduler: CoServe, trainer: Counting, rows: StepCost | None = None) -> Engine:
    """rows: what these really take, if not as predicted."""
    kernel = Kernel(trace=Trace("test"))
    kv, training, cost = KVCache(64, 4), Training(trainer.lengths, LAYERS), price()
    inner = SimulatedRunner(rows or cost.rows, script=next_token)
    return Engine(
        kernel,
        TrainingRunner(kernel, inner, trainer, training, cost),
        kv,
        scheduler,
        limits=Limits(max_len=1000),
        vocab_size=50,
        training=training,
        predict=cost.predict,
    )


def spans(engine: Engine, kind: str) -> list[Span]:
    assert engine.kernel.trace is not None
    return [span for span in engine.kernel.trace.spans if span.kind == kind]


LOAD = [request(range(i, i + 10 + i % 5), max_tokens=20) for i in range(8)]


@pytest.mark.parametrize(
    "inner", [Sarathi(chunk=16), PrefixGroups(inner=Sarathi(chunk=16)), FastSwitch(inner=Sarathi(chunk=16))]
)
def test_texts_are_the_same_and_steps_as_short_as_asked(inner: object) -> None:
    trainer = Counting([40] * 200)
    engine = make(CoServe(inner=inner, slo_s=0.2, fill=1.0), trainer)  # type: ignore[arg-type]
    seqs = run_load(engine, [0.3 * i for i in range(8)], LOAD)
    assert [seq.tokens[seq.prompt_len :] for seq in seqs] == [expected(r) for r in LOAD]
    steps = spans(engine, "step")
    with_rows = [s for s in steps if s.args and s.args["chunks"]]
    trained = [s for s in with_rows if s.args and "slices" in s.args]
    assert len(trained) > len(with_rows) / 2
    assert all(s.end_s - s.start_s <= 0.2 + 1e-9 for s in trained)
    assert max(s.end_s - s.start_s for s in trained) > 0.15
    assert engine.kv.free == engine.kv.total


class Late(UnitCost):
    """Every third step takes longer than predicted."""

    def __init__(self) -> None:
        self.steps = 0

    def stages(self, step: Step) -> Sequence[float]:
        self.steps += 1
        return [s + 0.1 * (self.steps % 3 == 0) for s in UnitCost().stages(step)]


def test_what_a_late_step_has_no_time_for_is_trained_in_the_next() -> None:
    trainer = Counting([40] * 200)
    engine = make(CoServe(slo_s=0.2, fill=1.0), trainer, Late())
    seqs = run_load(engine, [0.3 * i for i in range(8)], LOAD)
    assert [seq.tokens[seq.prompt_len :] for seq in seqs] == [expected(r) for r in LOAD]
    steps = [s for s in spans(engine, "step") if s.args and "slices" in s.args]
    assert all(s.end_s - s.start_s <= 0.2 + 1e-9 for s in steps)
    told = [Slice(*each) for s in steps for each in (s.args or {})["slices"]]
    assert told == trainer.seen
    again = Training(trainer.lengths, LAYERS)
    for piece in told:
        assert again.ahead(piece.count) == [piece]
        again.move([piece])


def test_windows_have_few_sizes() -> None:
    training, seen = Training([100, 37], LAYERS), set()
    while not training.finished:
        slices = training.ahead(75, grain=32)
        assert [piece.count for piece in slices[1:] if piece.count < 32 and piece.count not in (4, 5)] == []
        seen |= {piece.count for piece in slices}
        training.move(slices)
    assert seen <= {1, 2, 4, 5, 8, 16, 32, 64}
    assert [window(40, limit, 32) for limit in (0, 3, 31, 39, 40, 70)] == [0, 2, 16, 32, 32, 32]
    assert [window(7, limit, 32) for limit in (0, 3, 7, 9)] == [0, 2, 7, 7]


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), limits=st.data())
def test_what_is_undone_comes_again(lengths: list[int], limits: st.DataObject) -> None:
    training = Training(lengths, LAYERS)
    while not training.finished:
        slices = training.ahead(limits.draw(st.integers(1, 60)))
        training.move(slices)
        kept = limits.draw(st.integers(0, len(slices) - 1))
        _, rest = slices[kept].split(limits.draw(st.integers(0, slices[kept].count)))
        again = [piece for piece in (rest, *slices[kept + 1 :]) if piece.count]
        training.undo(again)
        assert training.ahead(sum(piece.count for piece in again)) == again
        training.move(again)


def test_a_price_follows_what_slices_take() -> None:
    cost, piece = price(), Slice(0, 0, 32)
    before_s = cost.slices_s([piece])
    for _ in range(60):
        cost.observe([piece], 1.5 * before_s)
    assert cost.slices_s([piece]) == pytest.approx(1.5 * before_s, rel=0.01)
    fits = cost.fitting(piece, before_s)
    assert 0 < fits < 32
    assert cost.slices_s([piece.split(fits)[0]]) <= before_s < cost.slices_s([piece.split(fits + 1)[0]])


@pytest.mark.parametrize("slo_s", [0.05, 1e-6])
def test_an_idle_engine_trains_to_the_end_and_lets_go(slo_s: float) -> None:
    trainer = Counting([7, 9, 5])
    engine = make(CoServe(slo_s=slo_s), trainer)
    engine.kernel.spawn(engine.run(), name="engine")
    engine.kernel.run()
    assert sum(piece.count for piece in trainer.seen) == 21 * (2 * LAYERS + 1)
    assert trainer.closed
    assert len(spans(engine, "update")) == 3


def test_what_goes_wrong_in_training_ends_training_only(caplog: pytest.LogCaptureFixture) -> None:
    trainer = Counting([40] * 200, fail_at=30)
    engine = make(CoServe(slo_s=0.2), trainer)
    seqs = run_load(engine, [0.3 * i for i in range(8)], LOAD)
    assert [seq.tokens[seq.prompt_len :] for seq in seqs] == [expected(r) for r in LOAD]
    assert trainer.closed
    assert "training has stopped: the loss is nan" in caplog.text
    (failed,) = spans(engine, "training failed")
    later = [s for s in spans(engine, "step") if s.start_s >= failed.end_s]
    assert later
    assert not any("slices" in (s.args or {}) for s in later)


def test_an_adapter_that_cannot_be_served_ends_training_only(caplog: pytest.LogCaptureFixture) -> None:
    """What an epoch was is told when its adapter is served; the second one is not."""
    trainer = Counting([10] * 200, epoch=2)
    engine = make(CoServe(slo_s=0.2), trainer)
    served: list[str] = []

    async def publish(adapter: Adapter) -> None:
        if served:
            raise CheckpointError("it does not fit")
        served.append(adapter.name)

    assert isinstance(engine.runner, TrainingRunner)
    engine.runner.publish = publish
    seqs = run_load(engine, [0.3 * i for i in range(8)], LOAD)
    assert [seq.tokens[seq.prompt_len :] for seq in seqs] == [expected(r) for r in LOAD]
    (epoch,) = spans(engine, "serve adapter")
    assert epoch.args is not None
    assert epoch.args["loss"] == (1 + 1 / 2) / 2
    assert epoch.args["tokens"] == 20
    assert 0 <= epoch.args["share"] <= 1
    assert "training has stopped: it does not fit" in caplog.text
    (failed,) = spans(engine, "training failed")
    assert not any("slices" in (s.args or {}) for s in spans(engine, "step") if s.start_s >= failed.end_s)
    assert trainer.closed


def test_training_is_stopped_in_the_middle_of_a_sequence() -> None:
    trainer = Counting([40] * 200)
    engine = make(CoServe(slo_s=0.2), trainer)
    serving = engine.kernel.spawn(engine.run(), name="engine")
    engine.kernel.run(until_s=3.0)
    assert engine.training is not None
    engine.training.stop()
    engine.kernel.run(until_s=6.0)
    assert trainer.closed
    assert spans(engine, "step")[-1].end_s < 3.5
    serving.cancel()


@pytest.mark.parametrize("least", [0.0, 0.2])
def test_steps_that_are_too_long_already_are_not_much_longer(least: float) -> None:
    trainer = Counting([40] * 20)
    engine = make(CoServe(slo_s=1e-6, least=least), trainer)
    seqs = run_load(engine, [0.0] * 8, LOAD)
    assert all(seq.finished == "length" for seq in seqs)
    with_rows = [(s, s.args) for s in spans(engine, "step") if s.args and s.args["chunks"]]
    assert any("slices" in args for _, args in with_rows) == bool(least)
    for span, args in with_rows:
        rows = sum(count for _, _, count, *_ in args["chunks"])
        assert span.end_s - span.start_s <= (1 + least) * 0.001 * rows + 1e-9


@pytest.mark.parametrize(
    "wrong", [{"slo_s": 0.0}, {"slo_s": float("nan")}, {"fill": 0.0}, {"fill": 1.5}, {"least": -1.0}]
)
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(RangeError):
        CoServe(**wrong)


def test_a_step_of_slices_alone_changes_something() -> None:
    assert Step().changes_nothing
    assert not Step(slices=[Slice(0, 0, 1)]).changes_nothing
