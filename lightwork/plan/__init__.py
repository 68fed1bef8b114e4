"""Searches over plans, priced by simulation.

serving.py       how to serve a model on a cluster under an objective: `search(problem) -> Found`
capacity.py      the highest rate of a load that a plan serves in time: `capacity(problem, arrivals)`
placement.py     engines for prompts and for decodes, by either phase alone: `placements(*phases(...))`
replan.py        planning again when the load has changed: `simulate_replanned(problem, ...)`
streaming.py     a window of a model's weights for a limited memory: `search(units, cap_bytes)`, `predict`
streamed_ranks.py  the same on devices that share every layer: `predict_ranks(spec, cluster, policy, way)`
place_experts.py which ranks experts go to, by their affinity: `place(affinity, distances(ranks))`
replicate_experts.py  copies of hot experts, so that ranks are equally busy: `replicate(rows, ranks)`
nano.py          how to cut a layer into nano-operations that overlap: `search(layers) -> Found`

A search asks one question of each choice: does it beat the best so far? A simulation of the engine that would
run for real answers it, so whatever is a technique can be chosen.
"""

from __future__ import annotations
