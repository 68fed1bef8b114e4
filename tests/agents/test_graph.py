"""The executor of task graphs: the results of sequential execution, no later than the longest path allows."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightwork.agents.graph import Graph, Slot, Task, Template, critical_path_s, fill, layers
from lightwork.errors import DeadlockError, UsageError
from lightwork.runtime.effects import Use
from lightwork.runtime.futures import Future
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.resources import Fifo

MOD = 1_000_003


def value_of(id: int, args: tuple[int, ...]) -> int:
    """A pure tool that tells all its inputs apart."""
    result = id
    for arg in args:
        result = (result * 31 + arg) % MOD
    return result


def draw(rng: Random, num: int) -> list[Task]:
    """A random graph: each task needs up to three of those before it."""
    tasks: list[Task] = []
    for id in range(1, num + 1):
        needs = rng.sample(range(1, id), min(id - 1, rng.randrange(4)))
        tasks.append(Task(id, "mix", [Slot(need) for need in needs]))
    return tasks


def in_order(tasks: list[Task]) -> dict[int, int]:
    """What sequential execution in the order of ids gives."""
    results: dict[int, int] = {}
    for task in tasks:
        results[task.id] = value_of(task.id, tuple(results[need] for need in task.deps))
    return results


def takes_s(rng: Random, tasks: list[Task]) -> dict[int, float]:
    return {task.id: rng.choice([0.0, 0.25, 1.0, 2.5]) for task in tasks}


def run(tasks: list[Task], takes: dict[int, float], workers: int = 0) -> tuple[dict[int, int], float]:
    """Results and makespan in virtual time."""
    kernel = Kernel()
    servers = Fifo("workers", workers) if workers else None

    async def work(task: Task, args: tuple[int, ...]) -> int:
        if servers is not None:
            await Use(servers, takes[task.id])
        else:
            await kernel.sleep(takes[task.id])
        return value_of(task.id, args)

    graph = Graph(kernel, lambda task, args, named: kernel.spawn(work(task, args)))

    async def main() -> dict[int, int]:
        for task in tasks:
            graph.add(task)
        found: dict[int, int] = await graph.seal()
        return found

    return kernel.run(main()), kernel.now()


@pytest.mark.parametrize("block", range(10))
def test_a_thousand_graphs_give_what_sequential_execution_gives(block: int) -> None:
    for seed in range(100):
        rng = Random(f"{block} {seed}")
        tasks = draw(rng, rng.randrange(1, 30))
        found, _ = run(tasks, takes_s(rng, tasks), workers=rng.choice([0, 1, 2, 5]))
        assert found == in_order(tasks)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), num=st.integers(1, 40), workers=st.integers(1, 6))
def test_no_worker_is_idle_while_a_task_could_run(seed: int, num: int, workers: int) -> None:
    rng = Random(seed)
    tasks = draw(rng, num)
    takes = takes_s(rng, tasks)
    path_s = critical_path_s({task.id: task.deps for task in tasks}, takes)
    work_s = sum(takes.values())
    _, free_s = run(tasks, takes)
    assert free_s == pytest.approx(path_s)
    _, makespan_s = run(tasks, takes, workers)
    least_s = max(path_s, work_s / workers)
    assert least_s - 1e-9 <= makespan_s <= (2 - 1 / workers) * least_s + 1e-9


def test_results_that_come_at_once_need_no_turn_of_the_kernel() -> None:
    kernel = Kernel()
    graph = Graph(kernel, lambda task, args, named: value_of(task.id, args))
    tasks = [Task(1, "mix"), *[Task(id, "mix", [Slot(id - 1)]) for id in range(2, 20_001)]]
    for task in tasks:
        graph.add(task)
    assert graph.results == in_order(tasks)
    assert kernel.run(_value(graph.seal())) == graph.results


async def _value(future: Future) -> Any:
    return await future


def test_what_a_result_says_is_not_read_as_a_plan() -> None:
    kernel = Kernel()
    said = {1: "$2 and ${1}", 2: {"price": [7, "$1"]}}
    seen: list[tuple[Any, ...]] = []

    def start(task: Task, args: tuple[Any, ...], named: Any) -> Any:
        seen.append((*args, *named.values()))
        return said.get(task.id)

    graph = Graph(kernel, start)
    graph.add(Task(1, "a"))
    graph.add(Task(2, "b"))
    graph.add(
        Task(3, "c", [Slot(1), [Slot(2, ("price", "0"))]], {"text": Template(("it is ", Slot(1), "!"))})
    )
    assert seen[2] == ("$2 and ${1}", [7], "it is $2 and ${1}!")


def test_paths_that_are_not_there_are_refused() -> None:
    for path in (("weight",), ("price", "9"), ("price", "x")):
        with pytest.raises(UsageError, match="there is no"):
            fill(Slot(1, path), {1: {"price": [1]}})


def test_ids_are_taken_once_and_needs_stand_before() -> None:
    graph = Graph(Kernel(), lambda task, args, named: 0)
    graph.add(Task(1, "a"))
    with pytest.raises(UsageError, match="there is a task 1"):
        graph.add(Task(1, "a"))
    for needs in (2, 3):
        with pytest.raises(UsageError, match=f"needs \\${needs}"):
            graph.add(Task(2, "a", [Slot(needs)]))


def test_a_task_that_fails_has_a_result_of_its_own() -> None:
    kernel = Kernel()

    async def late() -> None:
        await kernel.sleep(1.0)
        raise ValueError("late")

    def start(task: Task, args: tuple[Any, ...], named: Any) -> Any:
        if task.tool == "now":
            raise ValueError("now")
        return kernel.spawn(late())

    graph = Graph(kernel, start, failed=lambda task, error: f"{task.id}: {error}")
    graph.add(Task(1, "now"))
    graph.add(Task(2, "later"))
    assert kernel.run(_value(graph.seal())) == {1: "1: now", 2: "2: late"}


def test_without_a_way_to_tell_it_the_whole_fails() -> None:
    kernel = Kernel()

    async def late() -> None:
        raise ValueError("late")

    graph = Graph(kernel, lambda task, args, named: kernel.spawn(late()))
    graph.add(Task(1, "a"))
    with pytest.raises(ValueError, match="late"):
        kernel.run(_value(graph.seal()))


def test_what_never_ends_is_named() -> None:
    kernel = Kernel()
    graph = Graph(kernel, lambda task, args, named: kernel.future("an answer"))
    graph.add(Task(1, "a"))
    graph.add(Task(2, "a", [Slot(1)]))
    with pytest.raises(DeadlockError, match="the results of tasks 1, 2"):
        kernel.run(_value(graph.seal()))


def test_cancelled_tasks_begin_nothing_more() -> None:
    kernel = Kernel()
    begun: list[int] = []

    async def long() -> None:
        await kernel.sleep(10.0)

    def start(task: Task, args: tuple[Any, ...], named: Any) -> Any:
        begun.append(task.id)
        return kernel.spawn(long())

    graph = Graph(kernel, start)
    graph.add(Task(1, "a"))
    graph.add(Task(2, "a", [Slot(1)]))
    kernel.at(1.0, graph.cancel)
    kernel.run(until_s=30.0)
    assert begun == [1]


def test_layers_and_their_cycles() -> None:
    assert layers({1: (), 2: (1,), 3: (1,), 4: (2, 3), 5: ()}) == [[1, 5], [2, 3], [4]]
    with pytest.raises(UsageError, match="tasks 2, 3 need each other"):
        layers({1: (), 2: (1, 3), 3: (2,)})
