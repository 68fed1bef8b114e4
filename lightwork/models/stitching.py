"""Stitches: what joins the blocks of two models of unequal width in one chain (BlockLLM).

A stitch is a linear map of hidden states. It is trained in closed form: both models read the same texts, and
what the first has before a layer is fitted to what the second has there, by least squares. Whether the joined
chain may stand in for the second model is asked as of any other (`equivalence`).

T tokens of all texts  d hidden
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightwork.errors import SpecError
from lightwork.kernels.rows import Rows
from lightwork.models.chains import share
from lightwork.models.equivalence import BLOCK_SIZE, Probes
from lightwork.models.model import paged
from lightwork.models.transformer import embed, run_layers

RIDGE = 1e-4
"""Of the mean square of the inputs: keeps the map small where texts say nothing."""


def stitch(probes: Probes, first: str, second: str, layer: int) -> tuple[str, ...]:
    """The chain of one application up to a layer, and of another from there on, joined by a trained stitch.

    It is not registered yet. Raises SpecError for a layer that has none before it or behind it.
    """
    zoo = probes.zoo
    begins, ends = zoo.chain(first), zoo.chain(second)
    at = [[i for i in chain if zoo.blocks[i].place == ("attention", layer)] for chain in (begins, ends)]
    if layer < 1 or not all(at):
        raise SpecError(
            f"{first!r} and {second!r} joined before layer {layer}",
            expected="a layer that both have, from 1 on",
            fix="another layer",
        )
    x_Td, y_Td = (_states(probes, name, layer) for name in (first, second))
    mean_x, mean_y = x_Td.mean(0), y_Td.mean(0)
    x_Td, y_Td = x_Td - mean_x, y_Td - mean_y
    square = x_Td.T @ x_Td
    damped = square + RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype)
    map_dd = torch.linalg.solve(damped, x_Td.T @ y_Td).T
    tensors = {"stitch": map_dd.float(), "bias": (mean_y - map_dd @ mean_x).float()}
    joint = zoo.keep("stitch", layer, tensors, zoo.blocks[ends[0]].shape)
    before, behind = begins[: begins.index(at[0][0])], ends[ends.index(at[1][0]) :]
    return (*before, joint, *(_own_head(probes, ends, i) for i in behind))


def _own_head(probes: Probes, chain: tuple[str, ...], block: str) -> str:
    """A head without its tied embedding, which is another's in a joined chain, as one that has its matrix."""
    zoo = probes.zoo
    tensors = zoo.tensors(block)
    if zoo.blocks[block].kind != "head" or "head" in tensors:
        return block
    whole = {**tensors, "head": zoo.tensors(chain[0])["embed"]}
    return zoo.keep("head", -1, whole, zoo.blocks[block].shape)


@torch.inference_mode()
def _states(probes: Probes, name: str, layer: int) -> Tensor:
    """An application's hidden states before a layer, float64 [T, d]."""
    model, zoo = probes.model, probes.zoo
    weights = share(model, zoo, {"": zoo.chain(name)}).chains[""].weights
    spec, found = zoo.spec(zoo.chain(name)), []
    for tokens in probes.texts:
        rows = Rows.of_text(tokens, BLOCK_SIZE)
        kv = model.new_kv(rows.tables.shape[1], BLOCK_SIZE)
        attend = paged(model.spec, rows, kv, model.device)
        tokens_R, at_R = (torch.from_numpy(x).to(model.device) for x in (rows.tokens, rows.positions))
        x_Rd = embed(weights, tokens_R, at_R)
        found.append(run_layers(weights.layers[:layer], spec, x_Rd, at_R, attend))
    return torch.cat(found).double().cpu()
