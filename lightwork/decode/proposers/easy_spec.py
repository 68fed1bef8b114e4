"""EasySpec: the drafter's layers attend in groups, and what that makes inexact is computed anew each round.

Paper:  "EasySpec: Layer-Parallel Speculative Decoding for Efficient Multi-GPU Utilization", 2025 (NeurIPS)
Idea:   the attentions of a group of layers all take the input of its first, so that devices compute them at
        once; each draft begins with an exact pass over what was committed since the last one, which writes
        its keys and values anew
Shapes: chains of k nodes: the first from an exact pass over a draft's accepted tokens and the one behind
        them, k - 1 from passes of one row by groups
Cost:   attention stages of a pass by groups: as many as groups; on n devices a gather per group of several
Claims: easyspec
Differs: a group of more layers than there are devices is allowed: each computes its share of them
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lightwork.decode.proposers import Target
from lightwork.decode.proposers.draft_model import DraftModel, DraftRunner
from lightwork.models import read_shape
from lightwork.models.layer_plan import LayerPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class EasySpec:
    """inner: the drafter. groups: of all its layers, neighbours in order; none are pairs, with an eighth of
    the layers at either end alone. calibrate: False keeps what is inexact, to see what that costs.
    """

    inner: DraftModel = field(default_factory=DraftModel)
    groups: tuple[tuple[int, ...], ...] = ()
    calibrate: bool = True

    def begin(self, target: Target) -> DraftRunner:
        """As `DraftModel.begin`; raises SpecError for groups that are not of the drafter's layers, too."""
        num_layers = read_shape(self.inner.model).num_layers
        plan = LayerPlan.spread(num_layers)
        if self.groups:
            plan = LayerPlan(num_layers=num_layers, groups=self.groups)
        runner = self.inner.begin(target)
        runner.arrange(plan, calibrate=self.calibrate, asked=self)
        return runner
