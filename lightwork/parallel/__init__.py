"""Splitting work over ranks, and the exchanges between them.

What lives here: one strategy per file (`ring`, `pipeline`), and `processes`, the backend that runs them on
processes of this machine. A strategy is a coroutine of effects: the same file runs on hundreds of simulated
ranks.

To add one: write a coroutine `name(me, n, ...)` that awaits Send, Recv, Compute and Collective, with a header
as in `ring`; test it by value on a SimWorld(execute=True), in time against its closed form, and on processes.
"""

from lightwork.parallel.ring import ring_all_reduce

__all__ = ["ring_all_reduce"]
