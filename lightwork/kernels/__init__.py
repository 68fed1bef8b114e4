"""The hot loops, each with a plain torch reference that the fast ones are tested against.

rows.py       `Rows`: the one ragged batch of a serving step, which every kernel takes
attention.py  paged attention: chunks, draft trees, sliding windows, grouped heads
gpu/          the same in Triton, and what stands between matrix products
"""
