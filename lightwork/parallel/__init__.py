"""Splitting work: over ranks, with the exchanges between them, and within one device.

all_reduces/       sums over ranks, as strategies of one rank: ring, star, direct; by_price.py: the quickest
pipeline.py        one stage of a pipeline, as a strategy
layer_parallel.py  a group of layers on several devices, as a strategy
processes.py       the backend that runs such strategies on processes of this machine
op_plan.py         a layer cut into nano-operations, and what such a plan must hold
overlap.py         the strategy that carries a plan out, and a simulated device on whose shares kernels run
operator_times.py  what operators take alone, priced
lanes.py           the backend of strategies whose children compute side by side: threads, streams of a GPU
nano_forward.py    a model's forward by a plan, for real
expert_dispatch.py tokens that go to the ranks of their experts, and stay there or come home, as a strategy;
                   expert_placement.py: which rank has which; expert_shard.py: a rank of it in torch;
                   traced_shard.py: in simulation, by a trace

A strategy is a coroutine of effects: the same file runs on hundreds of simulated ranks. To add one: write a
coroutine that awaits effects, with a header as in `all_reduces/ring.py`; test it by value on a
SimWorld(execute=True) or a real backend, and in time against its closed form.
"""

from lightwork.parallel.all_reduces.ring import ring_all_reduce
from lightwork.parallel.op_plan import NanoOp, Operator, OpPlan, layer_operators, serial_plan
from lightwork.parallel.overlap import carry_out, seconds_of

__all__ = [
    "NanoOp",
    "OpPlan",
    "Operator",
    "carry_out",
    "layer_operators",
    "ring_all_reduce",
    "seconds_of",
    "serial_plan",
]
