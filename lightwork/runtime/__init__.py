"""The kernel, its clocks and resources, and the one trace. Free of torch.

effects.py    what a strategy may ask for, and counted `Work`
kernel.py     `Kernel`: steps coroutines on a wall clock or a virtual one
futures.py    `Future`, `Task`
clock.py      the only place that reads a clock
resources.py  `Fifo`, `Fair`, `Store`
trace.py      `Span`, `Trace`, `Observer`; perfetto.py writes and reads Chrome traces
simulated.py  `SimWorld`: ranks whose effects take as long as a price says
record.py     an effect graph known beforehand, in arrays; replay.py re-times it, compiled

A program awaits futures and effects only. To add an effect: a class in effects.py, and what it does in each world.
"""
