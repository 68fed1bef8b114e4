"""The system: takes calls of agents, queues each before its resource, carries it out, and keeps the record.

    system = AIOS(kernel, {"": model}, tools, access=access, storage=Storage(folder), confirm=ask_the_user)
    result = await system.run(ReAct(), "how high is it?", Agent("ann"))
    system.calls[-1].waiting_s

A program is given a context whose model and tools are callers: they know a process number, and the system
knows whose it is, what it may do, and where the real ones are. This holds against whatever a program does
with the objects that it is given; code that searches the memory of its own interpreter has to be run in
another one.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import count
from math import inf
from typing import Any

from lightwork.agents.aios.access import Access
from lightwork.agents.aios.arguments import misfit
from lightwork.agents.aios.engine_log import EngineLog
from lightwork.agents.aios.memory import Memory
from lightwork.agents.aios.services import memory_tools, storage_tools
from lightwork.agents.aios.storage import Storage
from lightwork.agents.aios.syscall import Kind, Syscall
from lightwork.agents.aios.text_turns import in_turns
from lightwork.agents.chat_model import ChatModel, ChatRequest, ChatStream, Reply, ToolCall
from lightwork.agents.context import Budget, Context, Result
from lightwork.agents.programs import Program
from lightwork.agents.tool import Observation, Tool, Toolbox
from lightwork.errors import LightworkError, SpecError, UsageError
from lightwork.runtime.futures import Task
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.queue import Queue
from lightwork.runtime.queue_policies import QueuePolicy, Turn
from lightwork.runtime.trace import Span, Trace

Confirm = Callable[[str, ToolCall], Any]
"""Asked before an irreversible call of an agent is carried out; returns a bool, or a future or coroutine of
one."""


@dataclass(frozen=True, slots=True)
class Agent:
    """On whose behalf a program runs. priority: of its calls, the higher, the sooner."""

    name: str
    priority: int = 0


@dataclass(slots=True, eq=False)
class _Process:
    """tools: the real ones, memory and storage bound to the agent. kinds: of those that are services. task:
    of its program; calls of models end with it."""

    pid: int
    agent: Agent
    tools: Toolbox
    kinds: Mapping[str, Kind]
    task: Task | None = None


class AIOS:
    """models: by role, as in `Context`. places: calls that may be at a model at once, by role; whoever is not
    named queues by itself, as the serving engine does. policy: of all queues here. exclusive: groups of tools
    of which one runs at a time. confirm: None refuses whatever is irreversible. keep: how many of the latest
    calls are held. trained: of the models, as in `Context`.

    calls: the record, in the order in which they were made. Raises SpecError if two tools have one name.
    """

    def __init__(
        self,
        kernel: Kernel,
        models: Mapping[str, ChatModel],
        tools: Iterable[Tool] = (),
        *,
        places: Mapping[str, int] | None = None,
        policy: QueuePolicy | None = None,
        access: Access | None = None,
        memory: Memory | None = None,
        storage: Storage | None = None,
        exclusive: Iterable[Collection[str]] = (),
        confirm: Confirm | None = None,
        keep: int = 10_000,
        trained: bool = False,
    ) -> None:
        self.kernel = kernel
        self.access = access or Access()
        self.calls: deque[Syscall] = deque(maxlen=keep)
        self._models, self._tools, self._trained = models, [*tools], trained
        self._memory, self._storage, self._confirm = memory, storage, confirm
        self._processes: dict[int, _Process] = {}
        self._pids, self._ids = count(1), count(1)
        self._at_models = {r: Queue(kernel, f"model {r!r}", n, policy) for r, n in (places or {}).items()}
        self._before: dict[str, list[Queue]] = {}
        self._make_queues(policy, exclusive)
        self._engine_log = EngineLog()
        kernel.trace = kernel.trace or Trace("agents", keep=0)
        kernel.trace.observers.append(self._engine_log)

    # -- what users call

    def context(self, agent: Agent, budget: Budget | None = None) -> Context:
        """A new process of this agent, as long as the system lasts: what any program can be run with."""
        return self._context(self._process(agent), budget)

    def run(self, program: Program, question: str, agent: Agent, budget: Budget | None = None) -> Task:
        """Start a program as a process, which ends with it; the future's value is its Result."""
        process = self._process(agent)
        running = self._run(process, program, question, budget)
        process.task = self.kernel.spawn(running, name=f"{agent.name}'s program")
        return process.task

    async def call(self, pid: int, call: ToolCall) -> Observation:
        """A tool, memory or storage syscall.

        Raises AccessDeniedError for what the process may not do, UsageError for arguments that do not fit.
        What a tool raises is in the Observation.
        """
        process = self._running(pid)
        syscall = self._begin(process, process.kinds.get(call.name, "tool"), call.name)
        turns: list[tuple[Queue, Turn]] = []
        response: Observation | None = None
        error = "cancelled"
        try:
            await self._check(process, call)
            for queue in self._before.get(call.name, ()):
                turn = queue.turn(process.agent.priority)
                await queue.take(turn)
                turns.append((queue, turn))
            syscall.start(self.kernel.now())
            observation: Observation = await process.tools.call(call)
            response, error = observation, observation.error
            return observation
        except Exception as failed:
            error = str(failed)
            raise
        finally:
            for queue, turn in reversed(turns):
                queue.leave(turn)
            self._end(syscall, response, error)

    def stream(self, pid: int, role: str, request: ChatRequest) -> ChatStream:
        """An LLM syscall."""
        stream, model = ChatStream(self.kernel), self._models[role]
        try:
            process = self._running(pid)
        except UsageError as error:
            stream.fail(error)
            return stream
        agent, syscall = process.agent, self._begin(process, "llm", model.name)
        request = replace(request, tenant=agent.name, priority=agent.priority)
        speaking = self._speak(process, syscall, role, request, stream)
        name = f"{agent.name} asks {model.name}"
        stream.stop = self.kernel.spawn(speaking, name=name, parent=process.task).cancel
        return stream

    # -- carrying out

    async def _run(self, process: _Process, program: Program, question: str, budget: Budget | None) -> Result:
        try:
            return await program.run(self._context(process, budget), question)
        finally:
            del self._processes[process.pid]

    def _context(self, process: _Process, budget: Budget | None) -> Context:
        pid = process.pid
        models = {role: _Caller(model.name, self._asking(pid, role)) for role, model in self._models.items()}
        tools = [self._calling(pid, tool) for tool in process.tools.tools.values()]
        toolbox = Toolbox.of(self.kernel, tools)
        return Context(self.kernel, models, toolbox, budget or Budget(), trained=self._trained)

    async def _check(self, process: _Process, call: ToolCall) -> None:
        now_s, agent, tool = self.kernel.now(), process.agent.name, process.tools.tools.get(call.name)
        if tool is None:
            raise UsageError(f"there is no tool {call.name!r}", expected=", ".join(process.tools.tools))
        self.access.check_call(agent, call.name, now_s)
        if wrong := misfit(tool.parameters, call.arguments):
            raise UsageError(f"{call.name} cannot be called: {wrong}", expected="arguments of its schema")
        if call.name in process.kinds and "owner" in call.arguments:
            self.access.check_read(agent, call.arguments["owner"], call.name, now_s)
        if tool.effect == "irreversible":
            answer = self._confirm(agent, call) if self._confirm is not None else False
            if (await answer if inspect.isawaitable(answer) else answer) is not True:
                self.access.refuse(agent, f"{call.name} for good", "a confirmation", now_s)

    async def _speak(
        self, process: _Process, call: Syscall, role: str, request: ChatRequest, stream: ChatStream
    ) -> None:
        reply, error = None, "cancelled"
        try:
            queue, model = self._at_models.get(role), self._models[role]
            if queue is None:
                reply = await self._pass_on(call, model, request, stream)
            else:
                reply = await in_turns(call, queue, process.agent.priority, model, request, stream.push)
            error = ""
        except Exception as failed:
            error = str(failed)
            stream.fail(failed)
        finally:
            self._end(call, reply, error)
        if reply is not None:
            stream.end(reply)

    async def _pass_on(
        self, call: Syscall, model: ChatModel, request: ChatRequest, stream: ChatStream
    ) -> Reply:
        """To a model that queues by itself. If it has no trace, a call's turn begins with its first piece."""
        with self._engine_log.asking(call):
            inner = model.stream(request)
        try:
            async for piece in inner:
                if not call.starts_s:
                    call.start(self.kernel.now())
                stream.push(piece)
        finally:
            inner.cancel()
        return await inner.reply()

    # -- small parts

    def _process(self, agent: Agent) -> _Process:
        """A new one."""
        own: list[tuple[Kind, Tool]] = []
        if self._memory is not None:
            own += [("memory", tool) for tool in memory_tools(self._memory, agent.name)]
        if self._storage is not None:
            own += [("storage", tool) for tool in storage_tools(self._storage, agent.name)]
        toolbox = Toolbox.of(self.kernel, [*self._tools, *(tool for _, tool in own)])
        kinds = {tool.name: kind for kind, tool in own}
        process = _Process(next(self._pids), agent, toolbox, kinds)
        self._processes[process.pid] = process
        return process

    def _running(self, pid: int) -> _Process:
        process = self._processes.get(pid)
        if process is None:
            raise UsageError(f"process {pid} has ended", expected="calls of a program that runs")
        return process

    def _make_queues(self, policy: QueuePolicy | None, exclusive: Iterable[Collection[str]]) -> None:
        """In one order for all tools, so that no two calls wait for each other."""
        names = {tool.name for tool in self._tools}
        for group in exclusive:
            if unknown := [name for name in group if name not in names]:
                raise SpecError(f"{unknown[0]!r} is to exclude others", expected=", ".join(sorted(names)))
            queue = Queue(self.kernel, " or ".join(sorted(group)), 1, policy)
            for name in group:
                self._before.setdefault(name, []).append(queue)
        for tool in self._tools:
            if tool.limit:
                queue = Queue(self.kernel, tool.name, tool.limit, policy)
                self._before.setdefault(tool.name, []).append(queue)

    def _calling(self, pid: int, tool: Tool) -> Tool:
        """A tool that is a syscall. When it is too late, or too much, is for the real one to say."""

        async def call(**arguments: Any) -> Any:
            observation = await self.call(pid, ToolCall("", tool.name, arguments))
            if observation.error:
                raise LightworkError(observation.error)
            return observation.value

        return replace(tool, fn=call, limit=0, deadline_s=inf, inline=False)

    def _asking(self, pid: int, role: str) -> Callable[[ChatRequest], ChatStream]:
        return lambda request: self.stream(pid, role, request)

    def _begin(self, process: _Process, kind: Kind, name: str) -> Syscall:
        call = Syscall(next(self._ids), process.pid, process.agent.name, kind, name, self.kernel.now())
        self.calls.append(call)
        return call

    def _end(self, call: Syscall, response: Reply | Observation | None, error: str) -> None:
        call.end(self.kernel.now(), response, error)
        if self.kernel.trace is not None:
            args = {"agent": call.agent, "pid": call.pid, "waiting_s": call.waiting_s, "error": error}
            span = Span("agents", call.kind, call.name, call.created_s, self.kernel.now(), args=args)
            self.kernel.trace.add(span)


class _Caller:
    """A model that is a syscall."""

    __slots__ = ("_speak", "name")

    def __init__(self, name: str, speak: Callable[[ChatRequest], ChatStream]) -> None:
        self.name = name
        self._speak = speak

    def stream(self, request: ChatRequest) -> ChatStream:
        return self._speak(request)
