"""Learning without deep nets: estimators as scikit-learn has them, computed over shards of the data.

shards.py     a map over shards whose results are added up: here, or by actors at any places
ranks.py      the same over ranks of torch.distributed, or simulated: a strategy of effects
schedules.py  values that change over the iterations of a fit
sparse/       probabilistic sparse coding by truncated expectation maximisation
saved.py      fitted sparse coders as files
data.py       rows to learn from that need no download

An estimator's numeric work is a `Shard`'s: methods that return `Sums`. Its own part sees the sums only, so it
does not know how many shards there are, or where. To add an estimator: a Shard, and a class with `fit`.
"""
