"""Oracles of Duo-LLM: the routing pattern that serves one token best, found by trying.

Paper:  "Duo-LLM: A Framework for Studying Adaptive Computation in Large Language Models", 2024
Idea:   what is before a token keeps one routing, so all patterns of the token share its keys and values;
        the best within a budget bounds what any router could reach
Shapes: a text [T], one of its tokens, patterns [N, L] -> losses [N] of the token after it, in nats
Cost:   patterns that begin alike are one row until they part: of all 2^L one row for each beginning, 2^i in
        layer i, instead of L 2^L
Claims: duo_llm
Differs: with SKIP there are 3^L patterns; then coordinate search goes down from several starts

An oracle knows the token that it is judged by, and no later one. It is a bound, not a router.

T tokens  N patterns  L layers  S states  H heads  G key-value heads  D head size  d hidden
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lightwork.errors import RangeError
from lightwork.models.duo import BIG, SKIP, SMALL, Choose, Duo, add_mlp, checked, forward, given
from lightwork.models.tiles import in_tiles
from lightwork.models.transformer import Attend, attention, embed, logits, normalise, rotation

TILE = 64
"""Rows computed at once, so that one pattern alone has the bits it has among thousands."""
MAX_PATTERNS = 1 << 16

Score = Callable[[Tensor], Tensor]
"""Patterns [N, L] -> losses [N]."""


class Prefixes:
    """One text, each of whose tokens can be routed in any way while those before it are as they were.

    context_TL: how all tokens were routed for the keys and values that others see; None: all BIG.
    """

    @torch.no_grad()
    def __init__(self, duo: Duo, tokens_T: Tensor, context_TL: Tensor | None = None) -> None:
        shape = (len(tokens_T), duo.spec.num_layers)
        context_TL = torch.full(shape, BIG) if context_TL is None else context_TL
        self._duo, self._tokens_T = duo, tokens_T
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        positions_T = torch.arange(len(tokens_T))
        forward(duo, tokens_T, positions_T, self._attend_and_keep, given(context_TL))

    def _attend_and_keep(self, layer: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor) -> Tensor:
        repeats = self._duo.spec.num_heads // self._duo.spec.num_kv_heads
        q, k, v = (x.transpose(0, 1) for x in (q_THD, *_per_head(repeats, k_TGD, v_TGD)))
        self._keys.append(k)
        self._values.append(v)
        return F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0].transpose(0, 1)

    @torch.no_grad()
    def losses(
        self, at: int, patterns_NL: Tensor, see: Callable[[int, Tensor, Tensor], object] | None = None
    ) -> Tensor:
        """Loss of token at + 1 as each pattern for token `at` predicts it, float32 [N].

        see(layer, states [S, d] behind its attention, state of each pattern [N]) is called along the way.
        """
        duo = self._duo
        x_Sd = self._start(at)
        state_N = torch.zeros(len(patterns_NL), dtype=torch.int64)
        for i in range(duo.spec.num_layers):
            x_Sd = self._behind_attention(i, at, x_Sd)
            if see is not None:
                see(i, x_Sd, state_N)
            codes_N = 3 * state_N + checked(patterns_NL[:, i], i, len(patterns_NL))
            codes_S, state_N = torch.unique(codes_N, return_inverse=True)
            x_Sd = add_mlp(duo, i, x_Sd[codes_S // 3], codes_S % 3, TILE)
        scores_SV = in_tiles(lambda h_Sd: logits(duo.big, normalise(duo.big, duo.spec, h_Sd)), x_Sd, TILE)
        gold_S = self._tokens_T[at + 1].expand(len(scores_SV))
        return F.cross_entropy(scores_SV, gold_S, reduction="none")[state_N]

    @torch.no_grad()
    def route(self, at: int, choose: Choose, num_rows: int = 1) -> Tensor:
        """The patterns [R, L] that a router gives token `at` in so many rows, say one for each budget."""
        x_Rd = self._start(at).expand(num_rows, -1)
        pattern = []
        for i in range(self._duo.spec.num_layers):
            x_Rd = self._behind_attention(i, at, x_Rd)
            pattern.append(checked(choose(i, x_Rd), i, num_rows))
            x_Rd = add_mlp(self._duo, i, x_Rd, pattern[-1], TILE)
        return torch.stack(pattern, 1)

    def _start(self, at: int) -> Tensor:
        if not 0 <= at < len(self._tokens_T) - 1:
            raise RangeError(
                f"token {at} of a text of {len(self._tokens_T)} predicts no other",
                expected=f"0 to {len(self._tokens_T) - 2}",
            )
        return embed(self._duo.big, self._tokens_T[at : at + 1], torch.tensor([at]))

    def _behind_attention(self, i: int, at: int, x_Sd: Tensor) -> Tensor:
        """States behind layer i's attention, of rows that all stand at one place."""
        duo, attend = self._duo, self._attend(at)
        cos_sin = rotation(duo.spec, torch.full((TILE,), at), x_Sd.dtype)

        def attended(h_Sd: Tensor) -> Tensor:
            return h_Sd + attention(i, h_Sd, duo.big.layers[i], duo.spec, cos_sin, attend)

        return in_tiles(attended, x_Sd, TILE)

    def _attend(self, at: int) -> Attend:
        """Each row sees the tokens before that place, and itself."""
        spec = self._duo.spec

        def attend(layer: int, q_SHD: Tensor, k_SGD: Tensor, v_SGD: Tensor) -> Tensor:
            keys_HTD, values_HTD = self._keys[layer][:, :at], self._values[layer][:, :at]
            own_k, own_v = _per_head(spec.num_heads // spec.num_kv_heads, k_SGD, v_SGD)
            before_HST = q_SHD.transpose(0, 1) @ keys_HTD.transpose(1, 2)
            own_HS1 = (q_SHD * own_k).sum(-1).T[..., None]
            p = F.softmax(torch.cat((before_HST, own_HS1), -1) * spec.head_size**-0.5, -1)
            return (p[..., :-1] @ values_HTD).transpose(0, 1) + p[..., -1].T[..., None] * own_v

        return attend


def _per_head(repeats: int, *of_groups: Tensor) -> list[Tensor]:
    return [x.repeat_interleave(repeats, 1) if repeats > 1 else x for x in of_groups]


def every_pattern(num_layers: int, options: Sequence[int] = (SMALL, BIG)) -> Tensor:
    """All patterns [N, L] of these options, the last layer's choice changing fastest.

    Raises RangeError if they are more than MAX_PATTERNS.
    """
    if len(options) ** num_layers > MAX_PATTERNS:
        raise RangeError(
            f"{len(options)} choices in {num_layers} layers are {len(options) ** num_layers} patterns",
            expected=f"at most {MAX_PATTERNS}",
            fix="coordinate_search",
        )
    return torch.cartesian_prod(*[torch.tensor(options)] * num_layers).view(-1, num_layers)


def oracle(losses_N: Tensor, costs_N: Tensor, budget: float) -> int:
    """The best pattern that costs no more than the budget. Raises RangeError if all do."""
    allowed = (costs_N <= budget).nonzero()[:, 0]
    if not len(allowed):
        raise RangeError(f"no pattern costs {budget} or less", expected=f"from {costs_N.min()} on")
    return int(allowed[losses_N[allowed].argmin()])


def difficulty(losses_N: Tensor, patterns_NL: Tensor, budget: int) -> float:
    """How much the oracle with this many big layers gains over all-small ones: what compute can do for it.

    patterns_NL: all of SMALL and BIG. A token of high loss that no pattern predicts better is not difficult.
    """
    num_big_N = (patterns_NL == BIG).sum(1)
    return float(losses_N[num_big_N == 0].min() - losses_N[oracle(losses_N, num_big_N, budget)])


def coordinate_search(
    score: Score, starts_NL: Tensor, costs: Tensor, budget: float, options: Sequence[int] = (SKIP, SMALL, BIG)
) -> tuple[Tensor, float]:
    """From each start, the best change of one or two layers within the budget, until none is better.

    costs: of each choice, per layer. Returns the best pattern [L] met and its loss. Raises RangeError if a
    start is over the budget.
    """
    best_L, best = starts_NL[0], float("inf")
    for start_L in starts_NL:
        if float(costs[start_L].sum()) > budget:
            raise RangeError(
                f"a search starts at {float(costs[start_L].sum())}", expected=f"at most {budget}"
            )
        here_L, here = start_L, float(score(start_L[None])[0])
        while True:
            near_NL = _neighbours(here_L, options)
            near_NL = near_NL[costs[near_NL].sum(1) <= budget]
            if not len(near_NL) or float((losses_N := score(near_NL)).min()) >= here:
                break
            here_L, here = near_NL[int(losses_N.argmin())], float(losses_N.min())
        if here < best:
            best_L, best = here_L, here
    return best_L, best


def _neighbours(pattern_L: Tensor, options: Sequence[int]) -> Tensor:
    """Every pattern that differs in one layer, or in two: a swap keeps what both cost."""
    found, layers = [], range(len(pattern_L))
    for i in layers:
        for j in layers[i:]:
            for a in options:
                for b in options if j > i else (a,):
                    near_L = pattern_L.clone()
                    near_L[i], near_L[j] = a, b
                    found.append(near_L)
    near_NL: Tensor = torch.unique(torch.stack(found), dim=0)
    return near_NL[(near_NL != pattern_L).any(1)]
