"""A pipe between kernels: what is sent arrives, in order, however slow the link; and its end is told."""

from __future__ import annotations

from multiprocessing import Pipe
from typing import Any

import pytest

from lightwork.runtime.clock import Moment, WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.line import Line, Link


def lines(kernel: Kernel, link: Link) -> tuple[Line, Line, list[Any]]:
    """Both ends on one kernel; what the second receives, and when."""
    heard: list[Any] = []
    one, other = Pipe()
    return (
        Line(kernel, one, lambda message: None, lambda: None, link),
        Line(
            kernel,
            other,
            lambda message: heard.append((message, kernel.now())),
            lambda: kernel.post(kernel.stop),
            link,
        ),
        heard,
    )


@pytest.mark.parametrize("link", [Link(), Link(delay_s=0.02, bytes_per_s=2e6)], ids=["as it is", "slow"])
def test_messages_arrive_in_order_and_then_the_end(link: Link) -> None:
    kernel = Kernel(WallClock())
    near, _, heard = lines(kernel, link)
    sent = [(number, bytes(10_000)) for number in range(20)]

    async def main() -> None:
        for message in sent:
            near.send(message)
        while len(heard) < len(sent):
            await kernel.sleep(0.001)
        near.close()
        await kernel.future("the end")

    kernel.run(main())
    assert [message for message, _ in heard] == sent
    first_s, last_s = heard[0][1], heard[-1][1]
    if link != Link():  # each takes its bytes' time, and all the same delay
        assert first_s >= 0.02 + 10_000 / 2e6
        assert last_s >= 0.02 + 20 * 10_000 / 2e6


def test_nobody_waits_for_a_link_that_is_full() -> None:
    """Far more than a pipe holds, to somebody who does not read."""
    kernel = Kernel(WallClock())
    pipe, silent = Pipe()
    line = Line(kernel, pipe, lambda message: None, lambda: None, Link())
    for _ in range(100):
        line.send(bytes(100_000))
    silent.close()
    line.finish()


def test_clocks_of_one_machine_agree_and_those_of_others_follow() -> None:
    clock = WallClock()
    assert WallClock(clock.moment()).origin_s == clock.origin_s
    elsewhere = WallClock(Moment("another start", 1e9, 1000.0))
    assert 1000.0 <= elsewhere.now() < 1060.0
