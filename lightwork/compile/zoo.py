"""A zoo of networks whose way depends on their input, written plainly, for one sample of eight numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

WIDTH = 8


class Block(nn.Module):
    """A layer that is skipped where its gate says so."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.gate = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Any:
        if self.gate(x).mean() > 0:
            return x
        return x + torch.tanh(self.layer(x))


class _Stack(nn.Module):
    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(layers))
        self.gate, self.head = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 3)


class LayerSkip(nn.Module):
    """Eight gated blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(8))

    def forward(self, x: Tensor) -> Any:
        for block in self.blocks:
            x = block(x)
        return x


class EarlyExit(_Stack):
    """Leaves through the head once it is sure."""

    def forward(self, x: Tensor) -> Any:
        for layer in self.layers:
            x = torch.tanh(layer(x))
            if self.head(x).softmax(-1).max() > 0.45:
                break
        return self.head(x)


class BlockDrop(_Stack):
    """One policy at the beginning says which layers run."""

    def forward(self, x: Tensor) -> Any:
        policy = self.layers[0](x)[0]
        for i in range(len(self.layers)):
            if policy[i] < 0:
                continue
            x = x + torch.relu(self.layers[i](x))
        return self.head(x)


class AdaptiveDepth(_Stack):
    """A recurrence that ends when its state is small, or after six steps."""

    def forward(self, x: Tensor) -> Any:
        steps = 0
        while x.norm().item() > 1.0 and steps < 6:
            x = 0.8 * torch.tanh(self.layers[0](x))
            steps += 1
        return self.head(x)


class Resolution(_Stack):
    """Looks at half of the input's detail where that is enough."""

    def forward(self, x: Tensor) -> Any:
        view = nn.functional.avg_pool1d(x, 2).repeat_interleave(2, -1) if self.gate(x).sum() > 0 else x
        return self.head(self.layers[0](view))


class Routing(_Stack):
    """One of three experts, by argmax."""

    def forward(self, x: Tensor) -> Any:
        chosen = self.head(x).argmax()
        if chosen == 0:
            y = self.layers[0](x)
        elif chosen == 1:
            y = torch.relu(self.layers[1](x))
        else:
            y = x
        return self.head(y)


class Halting(_Stack):
    """Attention over its own history until the halting weights sum to one."""

    def forward(self, x: Tensor) -> Any:
        total = torch.zeros(())
        out = torch.zeros_like(x)
        while total < 1.0:
            x = (x.T @ x / 8.0).softmax(-1).matmul(x.T).T + self.layers[0](x)
            weight = 0.2 + 0.6 * torch.sigmoid(self.gate(x).sum())
            out = out + weight * x
            total = total + weight
        return self.head(out)


class Nested(_Stack):
    """Ifs in ifs, with and, or, not."""

    def forward(self, x: Tensor) -> Any:
        if self.gate(x).sum() > 0 and not x.sum() > 1:
            if x[0, 0] > 0 or x[0, 1] > 0:
                x = self.layers[0](x)
            x = torch.tanh(x)
        elif 0 < x[0, 2] < 1:
            x = self.layers[1](x)
        return self.head(x)


class ReturnInLoop(_Stack):
    """Returns from inside a loop, from two depths."""

    def forward(self, x: Tensor) -> Any:
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if x.sum() > 0.5:
                if i > 0:
                    return x.mean(-1)
                x = x - 1.0
        return self.head(x)


ZOO: tuple[type[nn.Module], ...] = (
    LayerSkip,
    EarlyExit,
    BlockDrop,
    AdaptiveDepth,
    Resolution,
    Routing,
    Halting,
    Nested,
    ReturnInLoop,
)


def network(kind: type[nn.Module], seed: int) -> nn.Module:
    """One of the zoo, for inference, with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind().eval()


def inputs(count: int, seed: int) -> list[Tensor]:
    """Samples [1, 8] that take many ways."""
    drawn = torch.Generator().manual_seed(seed)
    return [torch.randn(1, WIDTH, generator=drawn) * 2 for _ in range(count)]
