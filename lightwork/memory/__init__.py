"""Where keys and values live: blocks, the prefix tree over them, and the table of each sequence.

blocks.py   reference-counted blocks and the order in which cached ones are given up
prefix.py   the tree of published blocks: which text a block holds, found by walking from the root
kv.py       `KVCache`: the table of each sequence; reserve, commit, roll back, copy on write, share, release

Everything here counts and numbers; tensors belong to the runner. The engine is the only writer; schedulers
read.
"""
