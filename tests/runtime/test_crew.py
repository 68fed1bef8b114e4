"""Threads for calls that may hang: as many as needed, one at a time where that is enough."""

from __future__ import annotations

import threading
from queue import SimpleQueue

from lightwork.runtime.crew import Crew


def test_calls_one_after_another_share_a_thread():
    crew, done = Crew("test"), SimpleQueue[int]()
    names = set()
    for _ in range(20):
        crew.submit(lambda: done.put(threading.get_ident()))
        names.add(done.get(timeout=60))
    crew.shutdown(wait=False)
    assert len(names) <= 2  # the next call may come before a thread has said that it is free


def test_calls_that_hang_leave_room_up_to_the_most():
    crew, release, done = Crew("test", most=4), threading.Event(), SimpleQueue[str]()
    for _ in range(3):
        crew.submit(lambda: release.wait() and None)
    crew.submit(lambda: done.put("fourth"))
    assert done.get(timeout=60) == "fourth"
    crew.submit(lambda: release.wait() and None)
    crew.submit(lambda: done.put("waits"))
    assert done.empty()
    release.set()
    assert done.get(timeout=60) == "waits"
    crew.shutdown(wait=False)
