"""The laws of the kernel."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightwork.errors import DeadlockError, InvariantError, RangeError
from lightwork.runtime import (
    Acquire,
    CancelledError,
    Fifo,
    Kernel,
    Release,
    Send,
    Signal,
    Sleep,
    Spawn,
    Store,
    Use,
    Wait,
    WallClock,
)

CLOCKS = pytest.mark.parametrize("clock", [None, WallClock], ids=["virtual", "wall"])


def kernel_on(clock):
    return Kernel(clock() if clock else None)


async def after(seconds, value=None, log=None):
    await Sleep(seconds)
    if log is not None:
        log.append(value)
    return value


async def fails(seconds=0.0):
    await Sleep(seconds)
    raise ValueError("broken")


@given(st.lists(st.integers(0, 5), max_size=20))
def test_timers_ring_in_order_of_time_then_of_setting(whens):
    kernel, rang = Kernel(), []
    for i, when in enumerate(whens):
        kernel.at(float(when), rang.append, (when, i))
    kernel.run()
    assert rang == sorted((when, i) for i, when in enumerate(whens))


def test_virtual_time_passes_exactly():
    kernel = Kernel()
    assert kernel.run(after(0.1, "value")) == "value"
    assert kernel.now() == 0.1
    assert kernel.run(until_s=7.0) is None
    assert kernel.now() == 7.0


def test_a_task_starts_on_the_ready_queue():
    kernel, log = Kernel(), []

    async def main():
        kernel.spawn(after(0.0, "child", log))
        log.append("parent")
        await Sleep(1.0)

    kernel.run(main())
    assert log == ["parent", "child"]


@CLOCKS
def test_gather_keeps_the_order_of_its_arguments(clock):
    kernel = kernel_on(clock)

    async def main():
        return await kernel.gather(kernel.spawn(after(0.002, 1)), kernel.spawn(after(0.001, 2)))

    assert kernel.run(main()) == [1, 2]
    assert kernel.run(kernel.gather()) == []


def test_gather_fails_at_the_first_error_and_cancels_the_others():
    kernel, log = Kernel(), []

    async def main():
        slow = kernel.spawn(after(9.0, "late", log))
        with pytest.raises(ValueError, match="broken"):
            await kernel.gather(slow, kernel.spawn(fails(1.0)))
        assert kernel.now() == 1.0
        await Sleep(10.0)
        assert slow.done

    kernel.run(main())
    assert log == []


def test_first_is_the_first_and_the_others_go_on():
    kernel, log = Kernel(), []

    async def main():
        slow, fast = kernel.spawn(after(2.0, "slow", log)), kernel.spawn(after(1.0, "fast", log))
        assert await kernel.first(slow, fast) is fast
        assert await slow == "slow"

    kernel.run(main())
    assert log == ["fast", "slow"]


def test_a_timeout_cancels_and_a_value_in_time_drops_the_timer():
    kernel, log = Kernel(), []

    async def main():
        with pytest.raises(TimeoutError, match="slow was not done in 1 s"):
            await kernel.timeout(kernel.spawn(after(5.0, 1, log), name="slow"), 1.0)
        assert await kernel.timeout(kernel.spawn(after(1.0, 2, log)), 50.0) == 2
        assert kernel.now() == 2.0

    kernel.run(main())
    kernel.run()
    assert log == [2]
    assert kernel.now() == 5.0  # the cancelled sleep rings for nobody; the dropped timer at 51 does not


def test_many_dropped_timers_take_no_room():
    kernel = Kernel()

    async def main():
        for _ in range(10_000):
            await kernel.timeout(kernel.spawn(after(0.001)), 1e6)

    kernel.run(main())
    assert len(kernel._timers) + len(kernel._dropped) < 1000
    assert not kernel.tasks


def test_a_future_is_set_once():
    kernel = Kernel()
    future = kernel.future("the answer")
    with pytest.raises(InvariantError, match="the answer has no result yet"):
        future.result()
    future.set(1)
    with pytest.raises(InvariantError, match="the answer was set twice"):
        future.set(2)
    assert future.result() == 1


def test_all_who_wait_get_the_value_in_order():
    kernel, log = Kernel(), []
    future = kernel.future()

    async def waits(i):
        log.append((i, await future))

    for i in range(3):
        kernel.spawn(waits(i))
    future.add_callback(lambda f: log.append(("callback", f.result())))
    kernel.at(1.0, future.set, "value")
    kernel.run()
    assert sorted(log, key=str) == sorted([("callback", "value"), *((i, "value") for i in range(3))], key=str)
    future.add_callback(lambda f: log.append("late"))
    kernel.run()
    assert log[-1] == "late"


@given(cancel_at=st.integers(0, 12), seed=st.integers(0, 99))
def test_no_work_after_cancel(cancel_at, seed):
    kernel, log = Kernel(seed=seed), []
    pauses = kernel.rng("pauses")

    async def work(depth):
        children = []
        for _ in range(3):
            await Sleep(float(pauses.integers(0, 3)))
            log.append(kernel.now())
            if depth:
                children.append(await Spawn(work(depth - 1)))
        for child in children:
            await child

    task = kernel.spawn(work(2))
    marks = []
    kernel.at(cancel_at + 0.5, lambda: (kernel.cancel(task), marks.append(len(log))))
    kernel.run()
    assert len(log) == marks[0]
    assert task.done
    assert not kernel.tasks


def test_children_end_with_their_parent():
    kernel, log = Kernel(), []

    async def parent():
        await Spawn(after(5.0, "child", log))
        await Sleep(1.0)

    kernel.spawn(parent())
    kernel.spawn(after(6.0, "daemon", log))
    kernel.run()
    assert log == ["daemon"]


def test_a_cancelled_task_gives_back_what_it_holds_and_cannot_wait():
    kernel, store, log = Kernel(), Store("memory", 2.0), []

    async def holds():
        await Acquire(store, 2.0)
        try:
            await Sleep(9.0)
        finally:
            await Release(store, 2.0)
            await Signal("released")
            try:
                await Sleep(1.0)
            finally:
                log.append("stopped")

    async def waits():
        await Wait("released")
        await Acquire(store, 1.0)
        return kernel.now()

    task = kernel.spawn(holds())
    kernel.at(3.0, task.cancel)
    assert kernel.run(waits()) == 3.0
    assert log == ["stopped"]
    with pytest.raises(CancelledError):
        task.result()


def test_setting_what_was_cancelled_is_no_error():
    kernel = Kernel()
    future = kernel.future()
    kernel.cancel(future)
    future.set(1)
    assert isinstance(future.error, CancelledError)


def test_a_deadlock_names_who_waits_for_what():
    kernel = Kernel()
    store = Store("memory", 1.0)

    async def hog():
        await Acquire(store, 1.0)
        await kernel.future("a reply")

    async def main():
        await Sleep(1.0)
        await Acquire(store, 1.0)

    kernel.spawn(hog(), name="hog")
    with pytest.raises(
        DeadlockError, match=r"hog waits for a reply; main waits for Acquire.*Store\('memory'"
    ):
        kernel.run(main())


@CLOCKS
def test_an_error_nobody_waits_for_is_raised_at_the_end(clock):
    kernel = kernel_on(clock)
    kernel.spawn(fails(), name="daemon")
    with pytest.raises(ValueError, match="broken"):
        kernel.run(after(0.01))
    assert kernel.run(after(0.0, 1)) == 1  # raised once


def test_an_error_somebody_waited_for_is_not_raised_again():
    kernel = Kernel()

    async def main():
        task = kernel.spawn(fails())
        await Sleep(1.0)
        with pytest.raises(ValueError, match="broken"):
            await task
        return "fine"

    assert kernel.run(main()) == "fine"


def test_an_error_nobody_waits_for_is_logged_while_a_server_goes_on(caplog):
    kernel = Kernel(WallClock())
    kernel.spawn(fails(), name="daemon")
    with pytest.raises(ValueError, match="broken"):
        kernel.run(after(0.01))
    assert "daemon failed" in caplog.text


def test_the_error_of_main_tells_of_the_other():
    kernel = Kernel()
    kernel.spawn(fails(0.0), name="daemon")

    async def main():
        await Sleep(1.0)
        raise KeyError("main")

    with pytest.raises(KeyError) as caught:
        kernel.run(main())
    assert "daemon" in caught.value.__notes__[0]


def test_what_no_world_performs_is_refused():
    async def main():
        await Send(1, None)

    with pytest.raises(InvariantError, match="Send"):
        Kernel().run(main())


def test_counters():
    kernel, log = Kernel(), []

    async def waits(count):
        await Wait("done", count)
        log.append((count, kernel.now()))

    async def main():
        for count in (3, 1, 2):
            await Spawn(waits(count))
        for _ in range(3):
            await Sleep(1.0)
            await Signal("done")
        await Sleep(0.0)
        await Wait("done", 3)
        with pytest.raises(RangeError, match="counts down"):
            await Signal("done", -1)

    kernel.run(main())
    assert log == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_random_streams_depend_on_seed_and_name_only():
    def draw(seed, name, before=()):
        kernel = Kernel(seed=seed)
        for other in before:
            kernel.rng(other).random()
        return [kernel.rng(name).random() for _ in range(2)]

    assert draw(1, "a") == draw(1, "a", before=("b", "c"))
    assert draw(1, "a") != draw(1, "b")
    assert draw(1, "a") != draw(2, "a")
    assert draw(1, "a")[0] != draw(1, "a")[1]


@CLOCKS
def test_offloaded_work(clock):
    kernel = kernel_on(clock)

    async def main():
        with pytest.raises(ZeroDivisionError):
            await kernel.offload(lambda: 1 // 0)
        return await kernel.offload(divmod, 7, 2, cost_s=0.25)

    assert kernel.run(main()) == (3, 1)
    if clock is None:
        assert kernel.now() == 0.25


def test_attempted_work_runs_here_and_now():
    kernel = Kernel(WallClock())

    async def main():
        with pytest.raises(ZeroDivisionError):
            await kernel.attempt(lambda: 1 // 0)
        future = kernel.attempt(threading.get_ident)
        assert future.done
        return await future

    assert kernel.run(main()) == threading.get_ident()


def test_offloaded_work_runs_in_another_thread():
    kernel = Kernel(WallClock())

    async def main():
        return await kernel.offload(threading.get_ident)

    assert kernel.run(main()) != threading.get_ident()


def test_posts_of_other_threads_wake_a_kernel_that_waits():
    kernel, log = Kernel(WallClock()), []
    bell = kernel.future("a post")

    async def main():
        await bell
        return log

    def client():
        for i in range(100):
            kernel.post(log.append, (i, threading.get_ident()))
        kernel.post(bell.set)

    thread = threading.Thread(target=client)
    kernel.call_soon(thread.start)
    assert kernel.run(main()) == [(i, log[0][1]) for i in range(100)]
    assert log[0][1] == thread.ident
    thread.join()


def test_stop_ends_a_kernel_that_waits_and_it_can_go_on():
    kernel = Kernel(WallClock())
    bell = kernel.future("a post")
    task = kernel.spawn(_value(bell))
    thread = threading.Thread(target=kernel.run)
    thread.start()
    kernel.stop()
    thread.join()
    assert not task.done
    kernel.post(bell.set, 5)
    assert kernel.run(_value(task)) == 5


async def _value(future):
    return await future


@CLOCKS
def test_an_interrupt_leaves_a_kernel_that_can_go_on(clock):
    kernel = kernel_on(clock)

    async def interrupted():
        raise KeyboardInterrupt

    task = kernel.spawn(after(0.001, 1))
    with pytest.raises(KeyboardInterrupt):
        kernel.run(interrupted())
    assert kernel.run(_value(task)) == 1


def test_close_ends_every_task():
    kernel, log = Kernel(), []

    async def serves():
        try:
            await kernel.future("for ever")
        finally:
            log.append("closed")

    kernel.spawn(serves())
    kernel.run()
    kernel.spawn(serves())  # never started
    kernel.close()
    assert log == ["closed"]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=12), st.integers(1, 3))
def test_a_fifo_serves_in_order_with_its_servers_busy(jobs, servers):
    kernel, fifo, ends = Kernel(), Fifo("cores", servers), []

    async def job(i, at_s, amount_s):
        await Sleep(at_s)
        await Use(fifo, amount_s)
        ends.append((i, kernel.now()))

    for i, (at_s, amount_s) in enumerate(jobs):
        kernel.spawn(job(i, at_s, amount_s))
    kernel.run()
    free, expected = [0.0] * servers, []
    for i, (at_s, amount_s) in sorted(enumerate(jobs), key=lambda j: (j[1][0], j[0])):
        free.sort()
        free[0] = max(free[0], at_s) + amount_s
        expected.append((i, free[0]))
    assert sorted(ends) == sorted(expected)
    assert fifo.busy_s == sum(amount for _, amount in jobs)
