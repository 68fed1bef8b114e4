"""What effects cost on a cluster. No other file of the project turns bytes or operations into seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import ceil, log2
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lightwork.cluster.devices import Cluster, Link
from lightwork.errors import SpecError
from lightwork.runtime.effects import Collective, Compute, Effect, Move, Price, Send, Work
from lightwork.runtime.resources import Fair, Fifo
from lightwork.runtime.simulated import nbytes

FREE = Price()


class CostModel:
    """Prices effects by roofline: an operation takes the longer of its arithmetic and its memory traffic.

    The roofline is that of Williams, Waterman and Patterson, 2009; the rates are the cluster's, at the
    share that the operation's number of rows reaches.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._speeds: dict[tuple[str, str, int], float] = {}
        self._bandwidths: dict[str, float] = {}

    def seconds(self, work: Sequence[Work], *, kernels: int = 0) -> float:
        """Time of operations that follow one another on one device.

        kernels: into which they are fused, if the device does that (see `Unit.fuses`); else 0.
        """
        if kernels:
            bounds = self.bounds(work, kernels=kernels)
            return max(bounds["compute"], bounds["memory"]) + bounds["launches"]
        total = 0.0
        launch_s = self.cluster.device.unit.launch_s
        for w in work:
            arithmetic = w.ops / self._speed(w.kind, w.dtype, w.rows) if w.ops else 0.0
            traffic = w.bytes / self._bandwidth(w.level) if w.bytes else 0.0
            total += (arithmetic if arithmetic > traffic else traffic) + w.launches * launch_s
        return total

    def bounds(self, work: Sequence[Work], *, kernels: int = 0) -> dict[str, float]:
        """The same seconds by what bounds each operation: "compute" or "memory"; and those of "launches".

        Operations of one kernel stream, so they overlap: all their arithmetic with all their traffic, which
        is weights, keys and values, as what passes between them (elementwise work) stays on the chip.
        """
        found = {"compute": 0.0, "memory": 0.0, "launches": kernels * self.cluster.device.unit.launch_s}
        for w in work:
            arithmetic = w.ops / self._speed(w.kind, w.dtype, w.rows) if w.ops else 0.0
            traffic = w.bytes / self._bandwidth(w.level) if w.bytes else 0.0
            if kernels:
                found["compute"] += arithmetic
                found["memory"] += traffic if w.kind != "vector" else 0.0
                continue
            found["compute" if arithmetic > traffic else "memory"] += max(arithmetic, traffic)
            found["launches"] += w.launches * self.cluster.device.unit.launch_s
        return found

    def price(self, effect: Effect, rank: int) -> Price:
        """The price of an effect for one rank. Waiting for others (Recv) is free."""
        if isinstance(effect, Compute):
            return Price((((f"compute:{rank}",), self.seconds(effect.work)),))
        if isinstance(effect, Send):
            return self._carried(rank, effect.to, nbytes(effect.x))
        if isinstance(effect, Move):
            return self._move(effect, rank)
        if isinstance(effect, Collective):
            return Price((), self._met_seconds(effect.kind, effect.group, effect.x))
        return FREE

    def _met_seconds(self, kind: str, group: Sequence[int], given: Sequence[Any]) -> float:
        """Of a collective, by what each member gave."""
        if kind == "all_to_all":
            return self.all_to_all_seconds(group, [[nbytes(part) for part in parts] for parts in given])
        whole = nbytes(given) if kind == "all_gather" else nbytes(given[0])
        return self.collective_seconds(kind, group, whole)

    def collective_seconds(self, kind: str, group: Sequence[int], nbytes: float) -> float:
        """Closed forms (Thakur, Rabenseifner and Gropp, 2005). nbytes: of the whole result, of all_to_all's
        input.

        n ranks, link bandwidth B, latency a. All-reduce takes the faster of ring and tree, rings by the
        fastest protocol of the link, if it has any; over whole nodes also of both levels: reduce-scatter in
        each node, all-reduce of the parts between them, all-gather.
        """
        n = len(group)
        if n <= 1:
            return 0.0
        if kind == "all_to_all":
            return self.all_to_all_seconds(group, np.full((n, n), nbytes / n))
        link = self.slowest_link(group)
        flat_s = self._flat_seconds(kind, n, nbytes, link)
        per_node = Counter(rank // self.cluster.per_node for rank in group)
        members = min(per_node.values())
        if kind != "all_reduce" or len(per_node) == 1 or members == 1 or max(per_node.values()) != members:
            return flat_s
        if self.cluster.inner is None:
            return flat_s
        inside_s = 2 * self._flat_seconds("all_gather", members, nbytes, self.cluster.inner)
        return min(flat_s, inside_s + self._flat_seconds(kind, len(per_node), nbytes / members, link))

    def all_to_all_seconds(self, group: Sequence[int], nbytes: ArrayLike) -> float:
        """Pairwise exchange: a rank meets those it has something for, or from, one after another; the slowest
        rank counts. nbytes: [n, n], what each member of the group sends to each.
        """
        sent = np.array(nbytes, np.float64)
        np.fill_diagonal(sent, 0.0)
        met = (sent > 0) | (sent.T > 0)
        node = np.array(group) // self.cluster.per_node
        near = node[:, None] == node
        seconds = np.zeros(len(group))
        for link, where in ((self.cluster.inner, near), (self.cluster.outer, ~near)):
            if (met & where).any():
                a, b = np.argwhere(met & where)[0]
                link = link or self.cluster.link(group[a], group[b])  # says that there is none
                most = np.maximum((sent * where).sum(1), (sent * where).sum(0))
                seconds += (met & where).sum(1) * link.latency_s + most / link.bytes_per_s
        return float(seconds.max())

    def _flat_seconds(self, kind: str, n: int, nbytes: float, link: Link) -> float:
        """One level: n ranks, each with one link."""
        a, b = link.latency_s, link.bytes_per_s
        hops = ceil(log2(n))

        def ring(passes: int) -> float:
            ways = [
                p.start_s + passes * (n - 1) * (nbytes / n / b / p.share + p.hop_s) for p in link.protocols
            ]
            return min(ways, default=passes * (n - 1) * (nbytes / n / b + a))

        forms = {
            "all_reduce": min(ring(2), 2 * hops * (nbytes / b + a)),
            "all_gather": ring(1),
            "reduce_scatter": ring(1),
            "broadcast": hops * (nbytes / b + a),
            "barrier": 2 * hops * a,
        }
        if kind not in forms:
            expected = ", ".join([*forms, "all_to_all"])
            raise SpecError(f"no price for the collective {kind!r}", expected=expected)
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
        if kind in ("out", "in", "nic_out", "nic_in"):
            link = self.cluster.outer if kind.startswith("nic") else self.cluster.inner
            if link is None:
                raise SpecError(
                    f"{self.cluster.device.name} has no links", expected="a cluster of several devices"
                )
            return Fair(name, link.bytes_per_s)
        return Fair(name, self._bandwidth(kind))

    def resources(self) -> Mapping[str, Fifo | Fair]:
        """Resources for a SimWorld, each made when a price first names it."""
        return _Resources(self)

    def _carried(self, src: int, dst: int, nbytes: float) -> Price:
        """Over the link between two ranks."""
        same = src // self.cluster.per_node == dst // self.cluster.per_node
        out, into = ("out", "in") if same else ("nic_out", "nic_in")
        latency_s = self.cluster.link(src, dst).latency_s
        return Price((((f"{out}:{src}", f"{into}:{dst}"), nbytes),), latency_s)

    def _move(self, effect: Move, rank: int) -> Price:
        """Through the slower of the two memories; adding to the target reads it as well. From the memory of
        another rank, `peer:1`, over the link.
        """
        if effect.src.startswith("peer:"):
            return self._carried(int(effect.src.removeprefix("peer:")), rank, nbytes(effect.x))
        amount = nbytes(effect.x) * (2 if effect.op == "add" else 1)
        device = self.cluster.device
        slow = min((effect.src, effect.dst), key=lambda name: device.memory(name).read_bytes_per_s)
        return Price((((f"{slow}:{rank}",), amount),), device.memory(slow).latency_s)

    def _elsewhere(self, group: Sequence[int]) -> int:
        node = group[0] // self.cluster.per_node
        return next(rank for rank in group if rank // self.cluster.per_node != node)

    def _speed(self, kind: str, dtype: str, rows: int) -> float:
        """Operations per second that this many rows reach."""
        key = (kind, dtype, rows)
        speed = self._speeds.get(key)
        if speed is None:
            unit = self.cluster.device.unit
            speed = self._speeds[key] = unit.rate(kind, dtype) * unit.share(rows, kind, dtype)
        return speed

    def _bandwidth(self, level: str) -> float:
        if level not in self._bandwidths:
            self._bandwidths[level] = self.cluster.device.memory(level).read_bytes_per_s
        return self._bandwidths[level]


class _Resources(dict[str, Fifo | Fair]):
    def __init__(self, costs: CostModel) -> None:
        super().__init__()
        self._costs = costs

    def __missing__(self, name: str) -> Fifo | Fair:
        made = self[name] = self._costs.resource(name)
        return made
