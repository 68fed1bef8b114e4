"""Queues and shared bandwidth against the closed forms of textbooks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightwork.errors import RangeError
from lightwork.runtime import Acquire, Fair, Fifo, Kernel, Release, Sleep, Spawn, Store, Use, max_min_rates
from lightwork.runtime.resources import transfer


@pytest.mark.parametrize(
    ("service", "waiting"),
    [("exponential", lambda rho: rho / (1 - rho)), ("fixed", lambda rho: rho / (2 * (1 - rho)))],
    ids=["M/M/1", "M/D/1"],
)
def test_mean_waiting_times_are_those_of_queueing_theory(service, waiting):
    """Waiting times of Pollaczek and Khinchine, in units of the mean service time."""
    rho, num_customers = 0.5, 500_000
    kernel, fifo = Kernel(seed=11), Fifo("server")
    gaps = kernel.rng("gaps").exponential(1 / rho, num_customers)
    services = kernel.rng("services").exponential(1.0, num_customers) if service == "exponential" else None
    waited = 0.0

    async def customers():
        nonlocal waited
        for i in range(num_customers):
            await Sleep(float(gaps[i]))
            service_s = 1.0 if services is None else float(services[i])
            waited += fifo.reserve(kernel.now(), service_s) - service_s - kernel.now()

    kernel.run(customers())
    assert waited / num_customers == pytest.approx(waiting(rho), rel=0.02)


@pytest.mark.parametrize(
    ("capacity", "flows", "rates"),
    [
        # one link shared by all
        ({"l": 12.0}, ["l", "l", "l"], [4.0, 4.0, 4.0]),
        # the parking lot: a long flow over two links, a short one on each
        ({"a": 1.0, "b": 2.0}, ["ab", "a", "b"], [0.5, 0.5, 1.5]),
        # Bertsekas and Gallager, figure 6.11: five sessions, unit links
        (
            {"12": 1.0, "23": 1.0, "45": 1.0, "34": 1.0},
            [("12", "23"), ("23",), ("23", "34"), ("34",), ("12",)],
            [1 / 3, 1 / 3, 1 / 3, 2 / 3, 2 / 3],
        ),
    ],
    ids=["shared link", "parking lot", "five sessions"],
)
def test_max_min_rates_of_textbook_networks(capacity, flows, rates):
    assert max_min_rates([tuple(flow) for flow in flows], capacity) == pytest.approx(rates, rel=1e-15)


@given(
    st.lists(st.floats(0.5, 8.0), min_size=3, max_size=3),
    st.lists(st.sets(st.integers(0, 2), min_size=1), min_size=1, max_size=8),
)
def test_max_min_rates_fill_a_bottleneck_of_every_flow(capacities, flows):
    """The definition: each flow crosses a full link on which nobody is faster."""
    rates = max_min_rates([tuple(f) for f in flows], dict(enumerate(capacities)))
    load = [sum(r for r, f in zip(rates, flows, strict=True) if link in f) for link in range(3)]
    assert all(load[link] <= capacities[link] * (1 + 1e-9) for link in range(3))
    for rate, flow in zip(rates, flows, strict=True):
        assert any(
            load[link] >= capacities[link] * (1 - 1e-9)
            and all(r <= rate * (1 + 1e-9) for r, f in zip(rates, flows, strict=True) if link in f)
            for link in flow
        )


def test_flows_change_speed_as_others_come_and_go():
    kernel, link, ends = Kernel(), Fair("link", 10.0), {}

    async def flow(name, at_s, amount):
        await Sleep(at_s)
        await Use(link, amount)
        ends[name] = kernel.now()

    kernel.spawn(flow("long", 0.0, 40.0))  # 20 alone, 10 shared, 10 alone
    kernel.spawn(flow("short", 2.0, 10.0))
    kernel.run()
    assert ends == {"short": 4.0, "long": 5.0}


def test_what_is_on_its_way_through_a_retuned_link_changes_its_speed():
    kernel, link, ends = Kernel(), Fair("link", 10.0), []
    transfer(kernel, (link,), 40.0, lambda: ends.append(kernel.now()))
    kernel.at(1.0, link.retune, kernel, 5.0)  # 10 have passed, 10 more by 3
    kernel.at(3.0, link.retune, kernel, 20.0)  # and 20 in a second
    kernel.at(3.5, transfer, kernel, (link,), 5.0, lambda: ends.append(kernel.now()))  # both at 10
    kernel.run()
    assert ends == [4.0, 4.25]


def test_flows_of_other_links_are_not_touched():
    kernel, here, there, ends = Kernel(), Fair("here", 1.0), Fair("there", 1.0), []
    transfer(kernel, (there,), 5.0, ends.append, "there")
    (flow,) = there.flows
    timer = flow.timer
    transfer(kernel, (here,), 1.0, ends.append, "here")
    transfer(kernel, (here,), 1.0, ends.append, "here")
    assert flow.timer == timer
    kernel.run()
    assert ends == ["here", "here", "there"]
    assert kernel.now() == 5.0
    assert not here.flows
    assert not there.flows


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 30)), min_size=1, max_size=8))
def test_a_shared_link_moves_every_byte_at_full_speed_while_busy(flows):
    kernel, link = Kernel(), Fair("link", 3.0)
    for at_s, amount in flows:
        kernel.at(float(at_s), lambda amount=amount: transfer(kernel, (link,), float(amount), lambda: None))
    kernel.run()
    end_s = 0.0
    for at_s, amount in sorted(flows):
        end_s = max(end_s, at_s) + amount / 3.0
    assert kernel.now() == pytest.approx(end_s, rel=1e-9)
    assert not link.flows


def test_a_store_serves_in_order_of_arrival_and_never_gives_more_than_it_has():
    kernel, store, log = Kernel(), Store("memory", 10.0), []

    async def takes(name, amount, hold_s):
        await Acquire(store, amount)
        log.append((name, kernel.now()))
        await Sleep(hold_s)
        await Release(store, amount)

    async def main():
        children = [await Spawn(takes(*job)) for job in [("a", 6.0, 2.0), ("b", 6.0, 2.0), ("c", 1.0, 1.0)]]
        await kernel.gather(*children)

    kernel.run(main())
    assert log == [("a", 0.0), ("b", 2.0), ("c", 2.0)]
    assert store.level == 10.0


def test_amounts_that_cannot_be_are_refused():
    async def asks(effect):
        await effect

    for effect in (
        Acquire(Store("memory", 1.0), 2.0),
        Release(Store("memory", 1.0), 1.0),
        Use(Fifo("core"), -1.0),
        Use(Fair("link", 1.0), float("nan")),
    ):
        with pytest.raises(RangeError):
            Kernel().run(asks(effect))
    with pytest.raises(RangeError, match="is tuned to 0"):
        Fair("link", 1.0).retune(Kernel(), 0.0)
    for make in (lambda: Fifo("core", 0), lambda: Fair("link", 0.0), lambda: Store("memory", 0.0)):
        with pytest.raises(RangeError):
            make()
