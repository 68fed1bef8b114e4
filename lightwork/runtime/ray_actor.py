"""A child in a Ray actor, on whichever machine of the cluster has room: the same modules and messages.

The pipe is a TCP connection to the actor, with a key that Ray carries. Ray places actors and says when one
has died; what they compute and say does not pass through it. What they print is in Ray's log.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from concurrent.futures import Future
from importlib import import_module
from multiprocessing.connection import Client, Connection, Listener
from secrets import token_bytes
from subprocess import TimeoutExpired
from typing import Any

from lightwork.errors import LightworkError, MissingExtraError, SpecError
from lightwork.runtime.child import Child
from lightwork.runtime.line import hang_up

START_S = 120.0
"""So long a cluster may take to find room for an actor."""
STORE_BYTES = 80 << 20
"""Of Ray's object store, which nothing is put into: about the least it takes."""


class Body:
    """What runs in the actor. Called in this order, once each."""

    def listen(self, key: bytes) -> tuple[tuple[str, int], int]:
        """Where the pipe begins, and the process."""
        import ray

        self._listener = Listener((ray.util.get_node_ip_address(), 0), authkey=key)
        address: Any = self._listener.address
        return address, os.getpid()

    def run(self, module: str) -> None:
        """Until the pipe ends."""
        with self._listener:
            pipe = self._listener.accept()
        _at_once(pipe)
        import_module(module).run(pipe)


class Actor:
    """The process of an actor, as `child.Process`. ended: of `Body.run`."""

    def __init__(self, actor: Any, ended: Future[None], pid: int) -> None:
        self.pid = pid
        self._actor = actor
        self._ended = ended

    def wait(self, timeout: float | None = None) -> int | str:
        import ray

        if not ray.is_initialized():
            return "Ray has been shut down"
        try:
            self._ended.result(timeout)
        except TimeoutError:
            raise TimeoutExpired("an actor", timeout or 0.0) from None
        except ray.exceptions.RayError as error:
            return str(error).strip().rpartition("\n")[2].partition(". ")[0].rstrip(".")
        self.kill()
        return 0

    def kill(self) -> None:
        import ray

        if ray.is_initialized():
            ray.kill(self._actor)


def join(address: str, num_actors: int) -> tuple[int, int, Callable[[], object]]:
    """Join the cluster at an address ("auto": that of this machine; "": none, Ray is started here) for so
    many actors, unless this process has joined one; the cores and the bytes of memory that there are for
    each, and what to call at the end.

    Raises MissingExtraError; SpecError for a cluster that is not there or too small.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("ray", "ray") from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    here = {
        "address": "local",
        "num_cpus": max(num_actors, len(os.sched_getaffinity(0))),
        "include_dashboard": False,
        "object_store_memory": STORE_BYTES,
    }
    leave: Callable[[], object] = bool
    if not ray.is_initialized():
        leave = ray.shutdown
        try:
            ray.init(
                **({"address": address} if address else here),
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise SpecError(
                f"Ray cannot be reached at {address!r}: {error}",
                expected="ray:, ray:auto or ray:HOST:PORT",
                fix="ray start --head",
            ) from error
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and "CPU" in node["Resources"]]
    fitting = [
        each
        for each in range(1, 1 + max((int(node["CPU"]) for node in nodes), default=0))
        if sum(int(node["CPU"]) // each for node in nodes) >= num_actors
    ]
    if not fitting:
        leave()
        cores = sum(int(node["CPU"]) for node in nodes)
        raise SpecError(
            f"{num_actors} engines on {cores} cores", expected="a core for each", fix="fewer engines"
        )
    memory_bytes = min(node["memory"] / node["CPU"] for node in nodes) * fitting[-1]
    return fitting[-1], int(memory_bytes), leave


def start_actor(num_cores: int, name: str, module: str, order: Any) -> Child:
    """num_cores: that are the actor's. Raises LightworkError if there is no room for it, or it dies."""
    import ray

    actor = ray.remote(num_cpus=num_cores, max_restarts=0)(Body).remote()
    key = token_bytes(32)
    try:
        address, pid = ray.get(actor.listen.remote(key), timeout=START_S)
        ended = actor.run.remote(module).future()
        pipe: Connection = Client(address, authkey=key)
    except (ray.exceptions.RayError, OSError) as error:
        ray.kill(actor)
        raise LightworkError(
            f"Ray did not start {name}: {error}", fix="ray status says what there is room for"
        ) from error
    _at_once(pipe)
    ended.add_done_callback(lambda _: hang_up(pipe))  # a machine that is lost closes no connection
    return Child(name, Actor(actor, ended, pid), pipe, order)


def _at_once(pipe: Connection) -> None:
    """Small messages do not wait for each other."""
    with socket.socket(fileno=os.dup(pipe.fileno())) as end:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
