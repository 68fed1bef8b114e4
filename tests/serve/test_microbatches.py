"""Steps that share out what runs, so that a pipeline has something to do in every stage."""

from __future__ import annotations

import pytest
from engines import expected, make_engine, request

from lightwork.errors import RangeError
from lightwork.runtime.kernel import Kernel
from lightwork.serve.engine import Engine
from lightwork.serve.plan import Plan
from lightwork.serve.schedulers.microbatches import Microbatches
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.simulate import run_load
from lightwork.serve.simulated import open_simulated

LOAD = [request([i, i + 1], max_tokens=120) for i in range(12)]


def served(scheduler: object, stages: int, **settings: int) -> tuple[float, list[int]]:
    """When all were done, and the sequences of each step."""
    engine = make_engine(scheduler, depth=stages, **{"blocks": 800} | settings)  # type: ignore[arg-type]
    seqs = run_load(engine, [0.0] * len(LOAD), LOAD)
    assert [seq.tokens[seq.prompt_len :] for seq in seqs] == [expected(r) for r in LOAD]
    assert engine.kernel.trace is not None
    steps = [len(span.args["chunks"]) for span in engine.kernel.trace.spans if span.kind == "step"]  # type: ignore[index]
    return engine.kernel.now(), steps


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_all_stages_work_at_once(stages: int) -> None:
    """Where a step takes as long as it has rows, so many stages are nearly so many times as fast."""
    one_s, together = served(Sarathi(), stages)
    shared_s, shares = served(Microbatches(stages=stages), stages)
    assert set(together) == {12}
    assert max(shares[1:]) == 12 // stages
    assert shared_s == pytest.approx(one_s / stages, rel=0.1)


def test_nobody_is_left_behind_and_places_are_counted() -> None:
    """With fewer places than requests, shares that do not divide, and blocks that are short."""
    _, steps = served(Microbatches(inner=Sarathi(chunk=16), stages=3), 3, max_seqs=5, blocks=45)
    assert max(steps) <= 5


@pytest.mark.parametrize(("pp", "wanted"), [(1, Sarathi()), (2, Microbatches(stages=2))])
def test_pipelines_are_served_so_unless_a_scheduler_is_named(pp: int, wanted: object) -> None:
    plan = Plan(model="shape:llama-3-8b", on="sim:a100x2", tp=1, pp=pp)
    engine, _ = open_simulated(plan, Kernel())
    assert isinstance(engine, Engine)
    assert engine.scheduler == wanted


def test_no_stages_are_refused() -> None:
    with pytest.raises(RangeError, match="stages=0"):
        Microbatches(stages=0)
