"""The hot loops of a CPU, compiled by numba from vector code that is written once for every processor.

formats.py    the formats of matrices (needs no numba)
isa.py        what this processor can do, and what is emitted for it
state.py      what threads share: sizes, settings, addresses
team.py       threads that run one compiled function together
entries.py    what Python calls of the compiled code
machine_code.py  object files kept on disk, and linked

The others are needed only where something is compiled:

compiled.py   how numba compiles, and object files of what it has compiled
assemble.py   LLVM IR to object files
vectors.py    the vocabulary of the emitters: sixteen-lane loads, splats, fused multiply-adds
primitives.py what compiled functions use: views on addresses, the micro-kernel
sharing.py    shared work, barriers, waiting for a call
tile.py       the micro-kernel: rows times a block of 64 outputs, for every format of weights
lanes.py      its code in vectors
amx.py        its code in matrix registers
pack.py       matrices arranged for it, and quantised
rowwise.py    norms, rotation, activations, and rows encoded for the micro-kernel
pages.py      where keys and values lie
softmax.py    vector code of attention's scores
attention_plan.py  which rows go over which keys together, and as what tiles
attention.py  paged attention on the same micro-kernel, split by equal work
experts.py    mixture of experts
product.py    rows times a matrix by all threads
check.py      whether rows name only what there is
step.py       the whole forward of a step in one call
pick.py       the sampled token of a row

A block is 64 outputs wide: four vectors of 16 lanes. Every output is one chain of multiply-adds over its
inputs, so its bits do not depend on how many rows or threads there are.
"""
