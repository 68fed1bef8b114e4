"""One forward pass for all families, over rows.

What differs between families is data in ModelSpec and Weights; what differs between training and serving is
`attend`, the function that lets rows see each other's keys and values. Differentiable, pure torch.

R rows  d hidden  H query heads  G key-value heads  D head size  F MLP width  V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lightwork.errors import CheckpointError
from lightwork.models.layer_plan import LayerPlan
from lightwork.models.spec import ModelSpec, Rope
from lightwork.models.weights import Layer, Weights

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q [R, H, D], k [R, G, D], v [R, G, D]) -> output [R, H, D]."""
CosSin = tuple[Tensor, Tensor]

Adapt = Callable[[int, str, Tensor, Tensor], Tensor]
"""(layer, product of MATRICES, its input [R, ...], its output [R, ...]) -> the output to go on with."""
Change = Callable[[str, Tensor, Tensor], Tensor]
"""The same of one layer."""
Routed = Callable[[int, Tensor, Tensor], object]
"""Told, wherever rows are routed: (layer, its router's probabilities [R, E], the experts taken [R, K])."""
Reduce = Callable[[Tensor], Tensor]
"""Sums what each of several tensor-parallel ranks has of a product; alone, a rank has all of it."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


def as_it_is(layer: int, product: str, x: Tensor, y: Tensor) -> Tensor:
    return y


def _unchanged(product: str, x: Tensor, y: Tensor) -> Tensor:
    return y


def _whole(part: Tensor) -> Tensor:
    return part


def unseen(layer: int, probable_RE: Tensor, chosen_RK: Tensor) -> None:
    pass


def forward(
    weights: Weights,
    spec: ModelSpec,
    tokens_R: Tensor,
    positions_R: Tensor,
    attend: Attend,
    adapt: Adapt | None = None,
    routed: Routed = unseen,
    plan: LayerPlan | None = None,
) -> Tensor:
    """The normalised hidden states [R, d] of R rows. adapt: changes products, but for those of experts.

    plan: of the layers; None runs one after another.
    """
    x_Rd = embed(weights, tokens_R, positions_R)
    change = adapt or as_it_is
    if plan is None:
        x_Rd = run_layers(weights.layers, spec, x_Rd, positions_R, attend, adapt=change, routed=routed)
    else:
        x_Rd = run_groups(weights.layers, spec, x_Rd, positions_R, attend, plan, change, routed)
    return normalise(weights, spec, x_Rd)


def embed(weights: Weights, tokens_R: Tensor, positions_R: Tensor) -> Tensor:
    """Hidden states [R, d] before the first layer. Negative tokens are probes, -1 the first."""
    if weights.probes is None:
        x_Rd = F.embedding(tokens_R, weights.embed)
    else:
        known_Rd = F.embedding(tokens_R.clamp(min=0), weights.embed)
        probes_Rd = F.embedding((-1 - tokens_R).clamp(min=0), weights.probes)
        x_Rd = torch.where((tokens_R < 0)[:, None], probes_Rd, known_Rd)
    return x_Rd if weights.positions is None else x_Rd + F.embedding(positions_R, weights.positions)


def run_layers(
    layers: Sequence[Layer],
    spec: ModelSpec,
    x_Rd: Tensor,
    positions_R: Tensor,
    attend: Attend,
    reduce: Reduce = _whole,
    first: int = 0,
    adapt: Adapt = as_it_is,
    routed: Routed = unseen,
) -> Tensor:
    """Hidden states [R, d] behind some layers. spec: of those, with the heads and widths that they have.

    first: what `attend` calls the first of them.
    """
    cos_sin = rotation(spec, positions_R, x_Rd.dtype)
    for i, layer in enumerate(layers, first):
        x_Rd = block(i, x_Rd, layer, spec, cos_sin, attend, adapt, reduce, routed)
    return x_Rd


def block(
    i: int,
    x_Rd: Tensor,
    layer: Layer,
    spec: ModelSpec,
    cos_sin: CosSin | None,
    attend: Attend,
    adapt: Adapt = as_it_is,
    reduce: Reduce = _whole,
    routed: Routed = unseen,
) -> Tensor:
    """Layer i, from its input to the next one's. cos_sin: of the rows, see `rotary`."""
    change = partial(adapt, i)
    added_Rd = attention(i, x_Rd, layer, spec, cos_sin, attend, change, reduce)
    return follow(x_Rd, added_Rd, layer, spec, change, reduce, partial(routed, i))


def run_groups(
    layers: Sequence[Layer],
    spec: ModelSpec,
    x_Rd: Tensor,
    positions_R: Tensor,
    attend: Attend,
    plan: LayerPlan,
    adapt: Adapt = as_it_is,
    routed: Routed = unseen,
) -> Tensor:
    """Hidden states [R, d] behind all layers, by a plan; with groups of one these are the bits of
    `run_layers`."""
    cos_sin = rotation(spec, positions_R, x_Rd.dtype)
    for group in plan.groups:
        changes = [partial(adapt, i) for i in group]
        added = [
            attention(i, x_Rd, layers[i], spec, cos_sin, attend, change)
            for i, change in zip(group, changes, strict=True)
        ]
        for i, added_Rd, change in zip(group, added, changes, strict=True):
            x_Rd = follow(x_Rd, added_Rd, layers[i], spec, change, see=partial(routed, i))
    return x_Rd


def follow(
    x_Rd: Tensor,
    added_Rd: Tensor,
    layer: Layer,
    spec: ModelSpec,
    change: Change = _unchanged,
    reduce: Reduce = _whole,
    see: Callable[[Tensor, Tensor], object] = lambda probable_RE, chosen_RK: None,
) -> Tensor:
    """What comes behind a layer's attention, [R, d]: what that adds, and the MLP on it."""
    x_Rd = x_Rd + added_Rd
    return x_Rd + reduce(mlp_down(mlp_up(x_Rd, layer, spec, change, see), layer, change))


def attention(
    i: int,
    x_Rd: Tensor,
    layer: Layer,
    spec: ModelSpec,
    cos_sin: CosSin | None,
    attend: Attend,
    change: Change = _unchanged,
    reduce: Reduce = _whole,
) -> Tensor:
    """What layer i's attention adds, [R, d]."""
    heads_RK = attend(i, *queries_keys_values(x_Rd, layer, spec, cos_sin, change)).flatten(1)
    return reduce(change("out", heads_RK, F.linear(heads_RK, layer.out, layer.out_bias)))


def normalise(weights: Weights, spec: ModelSpec, x_Rd: Tensor) -> Tensor:
    """The last norm, before the head."""
    return norm(x_Rd, weights.norm, weights.norm_bias, spec)


def logits(weights: Weights, hidden_Nd: Tensor) -> Tensor:
    """Scores over the vocabulary [N, V], float32 at least."""
    scores_NV = F.linear(hidden_Nd, weights.head)
    return scores_NV if scores_NV.dtype == torch.float64 else scores_NV.float()


def rotation(spec: ModelSpec, positions_R: Tensor, dtype: torch.dtype) -> CosSin | None:
    """Of rows at these positions; None where positions are learned."""
    return rotary(spec.rope, spec.head_size, positions_R, dtype) if spec.position == "rotary" else None


def rotary(rope: Rope, head_size: int, positions_R: Tensor, dtype: torch.dtype) -> CosSin:
    """Cosines and sines of each row's rotation angles, [R, 1, D/2] each."""
    frequencies = torch.from_numpy(rope.frequencies(head_size)).to(positions_R.device)
    angles = positions_R.float()[:, None, None] * frequencies
    return angles.cos().to(dtype), angles.sin().to(dtype)


def norm(x_Rd: Tensor, weight: Tensor, bias: Tensor | None, spec: ModelSpec) -> Tensor:
    if spec.norm == "layer":
        return F.layer_norm(x_Rd, weight.shape, weight, bias, spec.norm_eps)
    return _rms(x_Rd, weight, spec.norm_eps)


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm in float32 at least, whatever the type of x (Zhang and Sennrich, 2019)."""
    if x.dtype in (torch.float32, torch.float64):
        return F.rms_norm(x, weight.shape, weight, eps)
    return weight * F.rms_norm(x.float(), weight.shape, None, eps).to(x.dtype)


def queries_keys_values(
    x_Rd: Tensor, layer: Layer, spec: ModelSpec, cos_sin: CosSin | None, change: Change = _unchanged
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [R, H, D], keys and values [R, G, D] each, rotated."""
    heads, groups = spec.num_heads, spec.num_kv_heads
    h_Rd = norm(x_Rd, layer.norm1, layer.norm1_bias, spec)
    qkv = change("qkv", h_Rd, F.linear(h_Rd, layer.qkv, layer.qkv_bias))
    qkv = qkv.view(len(h_Rd), heads + 2 * groups, spec.head_size)
    qk, v_RGD = qkv[:, : heads + groups], qkv[:, heads + groups :]
    if layer.q_norm is not None and layer.k_norm is not None:
        q, k = qk[:, :heads], qk[:, heads:]
        qk = torch.cat((_rms(q, layer.q_norm, spec.norm_eps), _rms(k, layer.k_norm, spec.norm_eps)), 1)
    if cos_sin is not None:
        qk = _rotate(qk, *cos_sin)
    return qk[:, :heads], qk[:, heads:], v_RGD


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + D/2) of each head."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def mlp_up(
    x_Rd: Tensor,
    layer: Layer,
    spec: ModelSpec,
    change: Change = _unchanged,
    see: Callable[[Tensor, Tensor], object] = lambda probable_RE, chosen_RK: None,
) -> Tensor:
    """The MLP's activations [R, F]; of a layer of experts what they give, [R, d]."""
    h_Rd = norm(x_Rd, layer.norm2, layer.norm2_bias, spec)
    if layer.router is not None:
        return _moe(h_Rd, layer, spec, see)
    return _activate(change("up", h_Rd, F.linear(h_Rd, layer.up, layer.up_bias)), spec)


def mlp_down(wide_RF: Tensor, layer: Layer, change: Change = _unchanged) -> Tensor:
    """What the MLP adds, [R, d]."""
    if layer.router is not None:
        return wide_RF
    return change("down", wide_RF, F.linear(wide_RF, layer.down, layer.down_bias))


def _activate(up: Tensor, spec: ModelSpec) -> Tensor:
    act = ACTIVATIONS.get(spec.activation)
    if act is None:
        raise CheckpointError(
            f"activation {spec.activation!r} is not supported", expected=", ".join(ACTIVATIONS)
        )
    if not spec.gated:
        return act(up)
    gate, value = up.chunk(2, -1)
    return act(gate) * value


def _moe(h_Rd: Tensor, layer: Layer, spec: ModelSpec, see: Callable[[Tensor, Tensor], object]) -> Tensor:
    """Each row through its most probable experts, weighted by the router (Shazeer et al., 2017.

    Jiang et al., 2024).
    """
    probable_RE, gates_RK, chosen_RK = route(h_Rd, layer, spec)
    see(probable_RE, chosen_RK)
    out_Rd = torch.zeros_like(h_Rd)
    for e in torch.unique(chosen_RK).tolist():
        rows, rank = torch.nonzero(chosen_RK == e, as_tuple=True)
        y = expert(h_Rd[rows], layer.up[e], layer.down[e], spec)
        out_Rd.index_add_(0, rows, y * gates_RK[rows, rank, None].to(y.dtype))
    return out_Rd


def route(h_Rd: Tensor, layer: Layer, spec: ModelSpec) -> tuple[Tensor, Tensor, Tensor]:
    """A router's probabilities [R, E], float32; of the K experts that each row takes the gates [R, K], and
    which they are [R, K], the most probable first. h_Rd: normalised."""
    assert layer.router is not None
    probable_RE = F.softmax(F.linear(h_Rd, layer.router).float(), -1)
    gates_RK, chosen_RK = probable_RE.topk(spec.experts_per_token, -1)
    if spec.normalise_gates:
        gates_RK = gates_RK / gates_RK.sum(-1, keepdim=True)
    return probable_RE, gates_RK, chosen_RK


def expert(h_Rd: Tensor, up: Tensor, down: Tensor, spec: ModelSpec) -> Tensor:
    """What one expert gives for normalised rows, [R, d]. up [2F or F, d], down [d, F]."""
    return F.linear(_activate(F.linear(h_Rd, up), spec), down)
