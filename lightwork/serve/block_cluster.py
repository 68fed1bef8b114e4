"""A cluster that serves chains of blocks, on the virtual clock: queues, hops, and keys and values that move.

Where blocks live, where a request goes next and how large a batch grows is decided by a technique of the kind
`Hop`. A device serves one pass at a time, of the instance whose head has waited longest; requests that come
back go before new ones.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean

from lightwork.errors import CapacityError
from lightwork.runtime.effects import Use
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.resources import Fifo
from lightwork.serve.block_prices import BlockPrices
from lightwork.serve.block_sites import Asked, Device, Site
from lightwork.serve.cost import KV_SHARE
from lightwork.serve.hops import Candidate, Carry, Demand, Hop, Instance, Stored
from lightwork.serve.loads import Arrival


class BlockCluster:
    """ranks: devices to use. budget: of similarity that a request may lose. scale_s: how often placement is
    asked again.

    hops: of requests that came back, and which of their passes each decision led to. carried: how keys and
    values were had. stood_in: blocks that another stood in for. passes, served: of each block, and requests
    in them.
    """

    def __init__(
        self,
        kernel: Kernel,
        prices: BlockPrices,
        ranks: Sequence[int],
        hop: Hop,
        *,
        budget: float = 0.0,
        scale_s: float = 10.0,
    ) -> None:
        self.kernel, self.prices, self.hop = kernel, prices, hop
        self.catalogue = prices.catalogue
        self.hops: list[tuple[Asked, int]] = []
        self.carried: Counter[Carry] = Counter()
        self.passes: Counter[int] = Counter()
        self.served: Counter[int] = Counter()
        self.stood_in = 0
        self._budget, self._scale_s = budget, scale_s
        cluster = prices.costs.cluster
        memory = cluster.device.memory().bytes * KV_SHARE
        self._rooms = [memory] * len(ranks)
        self.devices = [
            Device(
                number=i,
                rank=rank,
                server=rank // cluster.per_node,
                room=memory,
                compute=Fifo(f"device {i}"),
                link=Fifo(f"from device {i}"),
            )
            for i, rank in enumerate(ranks)
        ]
        self._sites: defaultdict[int, list[Site]] = defaultdict(list)
        self._waiting: deque[Asked] = deque()
        blocks = range(len(self.catalogue.blocks))
        self._most = [hop.batch(partial(prices.seconds, block)) for block in blocks]
        self._between = {device.server: Fifo(f"from server {device.server}") for device in self.devices}
        self._left = 0

    # -- the load

    def run(self, arrivals: Sequence[Arrival]) -> list[Asked]:
        """Serve a load to its end; blocks are placed for what of it is asked of each application.

        Raises CapacityError for requests that would wait for ever.
        """
        for change in self.hop.place(self._expected(arrivals), self._stored(), self._rooms, ()):
            device = self.devices[change.device]
            device.room -= self.catalogue.blocks[change.block].nbytes
            self._add(change.block, device)
        asked = [Asked(arrival, self.catalogue.chains[arrival.model]) for arrival in arrivals]
        self._left = len(asked)
        self._all_done = self.kernel.future("all requests")
        for device in self.devices:
            self.kernel.spawn(self._serve(device), name=f"device {device.number}")
        for request in asked:
            self.kernel.at(request.arrival.at_s, self._arrive, request)
        self.kernel.spawn(self._rescale(), name="placement")
        self.kernel.run(self._until_done())
        self.kernel.close()
        return asked

    async def _until_done(self) -> None:
        await self._all_done

    def _arrive(self, request: Asked) -> None:
        self._waiting.append(request)
        self._admit()

    def _admit(self) -> None:
        """Start waiting requests for whose keys and values an instance of every block has room."""
        self._waiting = deque(request for request in self._waiting if not self._assign(request))

    def _assign(self, request: Asked) -> bool:
        """Begin on a device that has all blocks: a token waits for one turn there. On several if none has."""
        whole = [way for device in self.devices if (way := self._all_on(device, request))]
        parts = [whole] if whole else [[[o] for o in self._options(block)] for block in request.chain]
        taken: list[tuple[Site, float]] = []
        for ways in parts:
            left = self._budget - _loss(taken)
            fits = [way for way in ways if _loss(way) <= left and self._fits(request, [s for s, _ in way])]
            if not fits:
                for site, _ in taken:
                    self._hold(request, site, -1)
                return False
            way = fits[self.hop.choose(map(self._beginning, fits), left).candidate]
            for site, _ in way:
                self._hold(request, site, 1)
            taken += way
        request.at, request.loss = [site for site, _ in taken], _loss(taken)
        self.stood_in += sum(loss > 0.0 for _, loss in taken)
        self._chunk(request)
        self._enqueue(request, request.at[0])
        return True

    def _all_on(self, device: Device, request: Asked) -> list[tuple[Site, float]]:
        """Instances of a whole chain on one device, blocks' own before stand-ins; none if that cannot be."""
        options = [[o for o in self._options(block) if o[0].device is device] for block in request.chain]
        way = [some[0] for some in options if some]
        return way if len(way) == len(options) and _loss(way) <= self._budget else []

    def _options(self, block: int) -> list[tuple[Site, float]]:
        found = [(site, 0.0) for site in self._sites[block]]
        for other, loss in self.catalogue.stand_ins.get(block, ()):
            found += [(site, loss) for site in self._sites[other]]
        return found

    def _fits(self, request: Asked, sites: Sequence[Site]) -> bool:
        """Whether a device has room for its keys and values of these blocks."""
        kv_bytes = sum(self.catalogue.blocks[site.block].kv_bytes for site in sites)
        return sites[0].device.room >= request.known * kv_bytes

    def _hold(self, request: Asked, site: Site, sign: int) -> None:
        site.device.room -= sign * request.known * self.catalogue.blocks[site.block].kv_bytes
        site.holding += sign
        guests = site.device.guests
        guests[request] += sign
        if not guests[request]:
            del guests[request]

    # -- passes

    def _chunk(self, request: Asked) -> None:
        """The rows of the next pass through the chain: of the prompt, or one token."""
        request.place, request.start = 0, request.computed
        left = request.arrival.prompt_len - request.computed
        request.count = min(max(1, left), self._most[request.at[0].block])

    def _enqueue(self, request: Asked, site: Site) -> None:
        request.ready_s = self.kernel.now()
        (site.new if request.start == 0 and request.place == 0 else site.returning).append(request)
        site.rows += request.count + request.again
        bell, site.device.bell = site.device.bell, None
        if bell is not None:
            bell.set(None)

    async def _serve(self, device: Device) -> None:
        while True:
            ready = [site for site in device.sites if site.rows]
            if not ready:
                device.bell = self.kernel.future(f"work on device {device.number}")
                await device.bell
                continue
            site = min(ready, key=Site.head_s)
            batch = self._take(site)
            chunks = [(r.start - r.again, r.count + r.again) for r in batch]
            scored = sum(r.start + r.count >= r.arrival.prompt_len for r in batch)
            ranks = {r.arrival.model: self.catalogue.ranks[r.arrival.model] for r in batch}
            adapters = [rank for rank in ranks.values() if rank]
            seconds = self.prices.pass_s(site.block, chunks, scored, adapters)
            device.busy_until_s = self.kernel.now() + seconds
            await Use(device.compute, seconds)
            for device.leaving, request in zip(range(len(batch) - 1, -1, -1), batch, strict=True):
                self._passed(request, site)

    def _take(self, site: Site) -> list[Asked]:
        batch: list[Asked] = []
        room = self._most[site.block]
        for queue in (site.returning, site.new):
            while queue and room > 0:
                request = queue.popleft()
                batch.append(request)
                room -= request.count + request.again
                site.rows -= request.count + request.again
        site.used += len(batch)
        self.passes[site.block] += 1
        self.served[site.block] += len(batch)
        return batch

    def _passed(self, request: Asked, site: Site) -> None:
        request.passed_s.append(self.kernel.now())
        request.again = 0
        request.place += 1
        if request.place == len(request.chain):
            request.computed += request.count
            if request.computed == request.arrival.prompt_len:
                request.first_s = self.kernel.now()
            if request.computed + 1 >= request.known:
                self._finish(request)
                return
            self._chunk(request)
        self._next(request, site.device)

    def _finish(self, request: Asked) -> None:
        request.finished_s = self.kernel.now()
        for site in request.at:
            self._hold(request, site, -1)
        self._left -= 1
        if not self._left:
            self._all_done.set(None)
        self._admit()

    # -- hops

    def _next(self, request: Asked, here: Device) -> None:
        """Go to the next block: to the owner of its keys and values, or elsewhere with them."""
        owner = request.at[request.place]
        if not request.start:
            self._carry(request, here, owner, owner, "owner")
            return
        others = (o for o in self._options(request.chain[request.place]) if o[0] is not owner)
        options = [(owner, 0.0), *(o for o in others if self._fits(request, [o[0]]))]
        candidates = (self._returning(request, site, here, owner, loss) for site, loss in options)
        chosen = self.hop.choose(candidates, self._budget - request.loss)
        site, loss = options[chosen.candidate]
        self.carried[chosen.carry] += 1
        self.hops.append((request, len(request.passed_s)))
        if site is not owner:
            self._hold(request, owner, -1)
            self._hold(request, site, 1)
            request.loss += loss
            self.stood_in += loss > 0.0
            request.at[request.place] = site
        self._carry(request, here, owner, site, chosen.carry)

    def _carry(self, request: Asked, here: Device, owner: Site, site: Site, carry: Carry) -> None:
        block = self.catalogue.blocks[site.block]
        arrive: Callable[[], None] = partial(self._enqueue, request, site)
        rows = request.count
        if carry == "recompute":
            request.again = request.start
            rows += request.start
        elif carry == "transfer":
            nbytes = request.start * block.kv_bytes
            arrive = partial(self._send, owner.device, site.device, nbytes, arrive)
        self._send(here, site.device, rows * block.hidden_bytes, arrive)

    def _send(self, src: Device, dst: Device, nbytes: float, done: Callable[[], object]) -> None:
        """One message after another on a device's link within its server, and on a server's link to
        others."""
        if src is dst:
            done()
            return
        link = self.prices.costs.cluster.link(src.rank, dst.rank)
        way = src.link if src.server == dst.server else self._between[src.server]
        sent_s = way.reserve(self.kernel.now(), nbytes / link.bytes_per_s)
        self.kernel.at(sent_s + link.latency_s, done)

    def _beginning(self, way: Sequence[tuple[Site, float]]) -> Candidate:
        """Of a request that begins: in a turn, its device makes a pass of every block that somebody asks."""
        device, seconds = way[0][0].device, self.prices.seconds
        before_s = sum(seconds(site.block, site.holding) for site in device.sites if site.holding)
        joined = [site for site, _ in way]
        after_s = sum(
            seconds(site.block, site.holding + (site in joined))
            for site in device.sites
            if site.holding or site in joined
        )
        adds_s = (after_s - before_s) * len(device.guests)
        return Candidate(after_s, after_s, adds_s, 0.0, 0.0, 0.0, False, _loss(way))

    def _returning(self, request: Asked, site: Site, here: Device, owner: Site, loss: float) -> Candidate:
        prices, block = self.prices, self.catalogue.blocks[site.block]
        rank, wait_s, rows = site.device.rank, self._wait_s(site), site.rows + request.count
        pass_s = prices.seconds(site.block, rows)
        reach_s = prices.link_s(here.rank, rank, request.count * block.hidden_bytes)
        if site is owner:
            return Candidate(wait_s, pass_s, 0.0, reach_s, 0.0, 0.0, True, 0.0)
        keys_s = prices.link_s(owner.device.rank, rank, request.start * block.kv_bytes)
        if here is site.device and here.leaving:  # those who were in its last pass do not wait for a copy
            keys_s = max(keys_s, prices.seconds(site.block, here.leaving))
        again_s = prices.link_s(here.rank, rank, request.start * block.hidden_bytes)
        again_s += prices.again_s(site.block, site.rows, request.start, request.count)
        return Candidate(wait_s, pass_s, 0.0, reach_s, keys_s, again_s, False, loss)

    def _wait_s(self, site: Site) -> float:
        """What is under way, a pass for each other queue, and the full passes before one joins the last of
        its own."""
        device, seconds = site.device, self.prices.seconds
        wait_s = max(0.0, device.busy_until_s - self.kernel.now())
        wait_s += sum(seconds(s.block, s.rows) for s in device.sites if s.rows and s is not site)
        most = self._most[site.block]
        return wait_s + site.rows // most * seconds(site.block, most)

    # -- placement

    def _expected(self, arrivals: Sequence[Arrival]) -> list[Demand]:
        """Requests that will be in flight of each application, if each is alone."""
        output = fmean(arrival.output_len for arrival in arrivals)
        span_s, num = max(arrivals[-1].at_s, 1e-9), Counter(arrival.model for arrival in arrivals)
        demands = []
        for name in self.catalogue.chains:
            chain = self.catalogue.preferred(name, self._budget)
            token_s = sum(self.prices.seconds(block, 1) for block in chain)
            demands.append(Demand(chain, num[name] / span_s * output * token_s))
        return demands

    def _stored(self) -> list[Stored]:
        blocks = enumerate(self.catalogue.blocks)
        return [Stored(block.nbytes, partial(self.prices.seconds, i)) for i, block in blocks]

    def _add(self, block: int, device: Device) -> None:
        site = Site(block, device)
        device.sites.append(site)
        self._sites[block].append(site)

    async def _rescale(self) -> None:
        while True:
            await self.kernel.sleep(self._scale_s)
            if self._waiting and not any(device.guests for device in self.devices):
                raise CapacityError(
                    f"{len(self._waiting)} requests wait and no device has room for their keys and values",
                    expected="memory beside the blocks",
                    fix="more devices",
                )
            sites = [site for some in self._sites.values() for site in some]
            instances = [
                Instance(
                    s.block,
                    s.device.number,
                    self.prices.seconds(s.block, s.rows) if s.rows else 0.0,
                    s.used,
                    not s.holding,
                )
                for s in sites
            ]
            for site in sites:
                site.used = 0
            running = {request for device in self.devices for request in device.guests}
            num = Counter(request.arrival.model for request in running)
            demands = [Demand(self.catalogue.preferred(name, self._budget), n) for name, n in num.items()]
            for change in self.hop.place(demands, self._stored(), self._rooms, instances):
                await self._change(change.block, self.devices[change.device], add=change.add)

    async def _change(self, block: int, device: Device, *, add: bool) -> None:
        nbytes = self.catalogue.blocks[block].nbytes
        if not add:
            site = next(s for s in self._sites[block] if s.device is device)
            self._sites[block].remove(site)
            device.sites.remove(site)
            device.room += nbytes
        elif device.room >= nbytes:
            device.room -= nbytes
            await self.kernel.sleep(self.prices.load_s(block))
            self._add(block, device)
            self._admit()


def _loss(way: Sequence[tuple[Site, float]]) -> float:
    """Similarity that it costs."""
    return sum(loss for _, loss in way)
