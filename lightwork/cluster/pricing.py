"""What effects cost on a cluster. No other file of the project turns bytes or operations into seconds."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log2

from lightwork.cluster.devices import Cluster, Link
from lightwork.errors import SpecError
from lightwork.runtime.effects import Collective, Compute, Effect, Move, Price, Send, Work
from lightwork.runtime.resources import Fair, Fifo

FREE = Price()


class CostModel:
    """Prices effects by roofline: an operation takes the longer of its arithmetic and its memory traffic.

    The roofline is that of Williams, Waterman and Patterson, 2009; the rates are the cluster's, at the
    share that the operation's number of rows reaches.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._rates: dict[tuple[str, str], float] = {}
        self._shares: dict[int, float] = {}
        self._bandwidths: dict[str, float] = {}

    def seconds(self, work: Sequence[Work]) -> float:
        """Time of operations that follow one another on one device."""
        total = 0.0
        launch_s = self.cluster.device.unit.launch_s
        for w in work:
            arithmetic = w.ops / (self._rate(w.kind, w.dtype) * self._share(w.rows)) if w.ops else 0.0
            traffic = w.bytes / self._bandwidth(w.level) if w.bytes else 0.0
            total += (arithmetic if arithmetic > traffic else traffic) + w.launches * launch_s
        return total

    def price(self, effect: Effect, rank: int) -> Price:
        """The price of an effect for one rank. Waiting for others (Recv) is free."""
        if isinstance(effect, Compute):
            return Price((((f"compute:{rank}",), self.seconds(effect.work)),))
        if isinstance(effect, Send):
            link = self.cluster.link(rank, effect.to)
            nbytes = getattr(effect.x, "nbytes", 0)
            return Price((((f"out:{rank}", f"in:{effect.to}"), nbytes),), link.latency_s)
        if isinstance(effect, Move):
            return self._move(effect, rank)
        if isinstance(effect, Collective):
            nbytes = getattr(effect.x, "nbytes", 0)
            return Price((), self.collective_seconds(effect.kind, effect.group, nbytes))
        return FREE

    def collective_seconds(self, kind: str, group: Sequence[int], nbytes: float) -> float:
        """Closed forms (Thakur, Rabenseifner and Gropp, 2005). nbytes: of the whole result, of all_to_all's
        input.

        n ranks, link bandwidth B, latency a. All-reduce takes the faster of ring and tree.
        """
        n = len(group)
        if n <= 1:
            return 0.0
        link = self.slowest_link(group)
        a, b = link.latency_s, link.bytes_per_s
        hops = ceil(log2(n))
        ring = (n - 1) * (nbytes / n / b + a)
        forms = {
            "all_reduce": min(2 * ring, 2 * hops * (nbytes / b + a)),
            "all_gather": ring,
            "reduce_scatter": ring,
            "all_to_all": ring,
            "broadcast": hops * (nbytes / b + a),
            "barrier": 2 * hops * a,
        }
        if kind not in forms:
            raise SpecError(f"no price for the collective {kind!r}", expected=", ".join(forms))
        return forms[kind]

    def slowest_link(self, group: Sequence[int]) -> Link:
        """The link that bounds a group: between nodes if it spans several."""
        nodes = {rank // self.cluster.per_node for rank in group}
        return self.cluster.link(group[0], group[-1] if len(nodes) == 1 else self._elsewhere(group))

    def resource(self, name: str) -> Fifo | Fair:
        """A new resource for a name that `price` uses."""
        kind = name.partition(":")[0]
        if kind == "compute":
            return Fifo(name)
        if kind in ("out", "in"):
            link = self.cluster.inner or self.cluster.outer
            if link is None:
                raise SpecError(
                    f"{self.cluster.device.name} has no links", expected="a cluster of several devices"
                )
            return Fair(name, link.bytes_per_s)
        return Fair(name, self._bandwidth(kind))

    def _move(self, effect: Move, rank: int) -> Price:
        """Through the slower of the two memories; adding to the target reads it as well."""
        nbytes = getattr(effect.x, "nbytes", 0) * (2 if effect.op == "add" else 1)
        device = self.cluster.device
        slow = min((effect.src, effect.dst), key=lambda name: device.memory(name).read_bytes_per_s)
        return Price((((f"{slow}:{rank}",), nbytes),), device.memory(slow).latency_s)

    def _elsewhere(self, group: Sequence[int]) -> int:
        node = group[0] // self.cluster.per_node
        return next(rank for rank in group if rank // self.cluster.per_node != node)

    def _rate(self, kind: str, dtype: str) -> float:
        key = (kind, dtype)
        if key not in self._rates:
            self._rates[key] = self.cluster.device.unit.rate(kind, dtype)
        return self._rates[key]

    def _share(self, rows: int) -> float:
        share = self._shares.get(rows)
        if share is None:
            share = self._shares[rows] = self.cluster.device.unit.share(rows)
        return share

    def _bandwidth(self, level: str) -> float:
        if level not in self._bandwidths:
            self._bandwidths[level] = self.cluster.device.memory(level).read_bytes_per_s
        return self._bandwidths[level]
