"""Probabilistic sparse coding: few hidden causes behind each observation, a prior, a noise and a posterior.

    from lightwork.learn.sparse import BSC
    coder = BSC(n_components=10, random_state=0).fit(X)        # X [N, D]
    coder.components_, coder.prior_, coder.noise_             # [H, D], how often a unit is active, sigma
    codes = coder.transform(X)                                # posterior means [N, H]

model  values        observation
BSC    0, 1          sum of the active units' components
TSC    -1, 0, 1      the same
DSC    any with 0    the same
MCA    0, 1          the largest of the active units' components, which are positive
MMCA   0, 1          that of largest magnitude
GSC    0, 1 times a normal number   sum

All are fitted by truncated expectation maximisation (truncated_em.py); a model is one file beside it: the
score of a state, what is summed over states, and what is learnt from the sums.

Source: Exarchakis et al., "ProSper -- A Python Library for Probabilistic Sparse Coding with Non-Standard
Priors and Superpositions" (2019), https://arxiv.org/abs/1908.06843
"""

from lightwork.learn.sparse.bsc import BSC
from lightwork.learn.sparse.dsc import DSC
from lightwork.learn.sparse.gsc import GSC
from lightwork.learn.sparse.mca import MCA
from lightwork.learn.sparse.mmca import MMCA
from lightwork.learn.sparse.tsc import TSC

__all__ = ["BSC", "DSC", "GSC", "MCA", "MMCA", "TSC"]
