"""Callers that wait for room in the queue."""

from __future__ import annotations

import pytest
from engines import expected, make_engine, request
from test_engine import assert_clean, outputs, rows_and_waiting

from lightwork.errors import BusyError, CapacityError


def test_who_asks_in_turn_waits_while_the_queue_is_full() -> None:
    """And is served in the order of asking, one who hangs up meanwhile aside."""
    engine = make_engine(blocks=16, max_seqs=1, max_waiting=2)
    kernel, accepted = engine.kernel, []

    async def ask(i: int) -> None:
        (seq,) = await engine.submit_in_turn(request([i], max_tokens=9))
        accepted.append((i, seq))

    async def main() -> None:
        callers = [kernel.spawn(ask(i)) for i in range(12)]
        await kernel.sleep(0.001)
        assert engine.num_unfinished == len(accepted) <= 3
        with pytest.raises(BusyError):
            engine.submit(request())
        callers[7].cancel()
        for i, caller in enumerate(callers):
            if i != 7:
                await caller
        await engine.drained()

    kernel.spawn(engine.run())
    kernel.run(main())
    assert [i for i, _ in accepted] == [*range(7), *range(8, 12)]
    assert outputs([seq for _, seq in accepted]) == [expected(seq.request) for _, seq in accepted]
    assert max(waiting for _, waiting in rows_and_waiting(engine)) == 2
    assert_clean(engine)


def test_nobody_waits_for_what_will_never_be() -> None:
    engine = make_engine(max_waiting=2)
    with pytest.raises(CapacityError, match="3 continuations"):
        engine.kernel.run(engine.submit_in_turn(request(n=3)))
