"""A process that does nothing but train, as fast as it can, until its input ends."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lightwork.runtime.clock import WallClock


@contextmanager
def training_process(model: str, tuning: str) -> Iterator[list[float]]:
    """Runs while the block does; the list then holds training tokens per second, there and back."""
    command = [sys.executable, "-m", "lightwork.claims._training_alone", model, tuning]
    found: list[float] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()  # it has begun
        try:
            yield found
        finally:
            process.stdin.close()
            found.append(float(process.stdout.readline() or 0.0))


def _train(model_uri: str, tuning_text: str) -> None:
    from lightwork.models import load_compiled
    from lightwork.models.precisions.stored import Stored
    from lightwork.serve.schedulers.co_serve import MOST
    from lightwork.serve.training import Training
    from lightwork.techniques import parse

    model = load_compiled(model_uri, precision=Stored())
    job = parse(tuning_text).begin(model, model.spec.max_len)
    training, ended = Training(job.lengths, job.num_layers), threading.Event()

    def wait() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    print("training", flush=True)
    clock, passed = WallClock(), 0
    while not ended.is_set() and not training.finished:
        slices = training.ahead(MOST)
        job.run(slices)
        training.move(slices)
        passed += sum(piece.count for piece in slices)
    print(passed / (2 * training.num_layers + 1) / clock.now(), flush=True)


if __name__ == "__main__":
    _train(*sys.argv[1:])
