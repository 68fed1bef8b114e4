"""Where keys and values live: blocks, the prefix tree over them, and the table of each sequence; and which
weights are there where there is no room for all.

blocks.py   reference-counted blocks and the order in which cached ones are given up
prefix.py   the tree of published blocks: which text a block holds, found by walking from the root
kv.py       `KVCache`: the table of each sequence; reserve, commit, roll back, copy on write, share, release
host.py     blocks of host memory behind those, for texts that gave theirs up
layouts/    kind: where a sequence's next block lies
tiers/      kind: how KV goes to host memory and back
residents.py   which items lie in a memory with a hard limit: experts, layers
residencies/   kind: which of them stay
streamed.py    weights that pass through a memory too small for them, as a residency says; for a model on the
               compiled CPU step, from disk: streamed_weights.py; for tensor-parallel ranks: streamed_stage.py
spilled.py     layers that are elsewhere, each fetched while those before it compute
peers.py       a model that does so, with another process (peer.py) for its other layers
expert_cache.py  the experts of each layer that are there; predictors/: kind: which the next layer will need
offloaded_experts.py  a torch forward that takes them so; expert_fetching.py: its time, as effects;
               expert_sites.py: which are rather computed on the host

Of keys and values everything here counts and numbers; tensors belong to the runner. The engine is the only
writer; schedulers read.
"""
