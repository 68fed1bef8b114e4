"""What the first five minutes take: CPU seconds of each command that a newcomer is told to try.

    python benchmarks/first_minutes.py

The bar: `lightwork demo` ends within 30 s, counted in CPU seconds of its process and those it starts, so that
it holds on a busy machine too. `serve` is counted until it can answer, `claims sarathi` to its end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from tempfile import TemporaryDirectory

from _report import report

from lightwork.runtime.clock import WallClock

DEMO_CPU_S = 30.0


def measured(*words: str, until: str | None = None) -> tuple[float, float]:
    """CPU seconds and seconds of a verb; of one that goes on, until it has said `until`."""
    clock = WallClock()
    start_s, before = clock.now(), os.times()
    with (
        TemporaryDirectory() as folder,
        subprocess.Popen(
            [sys.executable, "-m", "lightwork", *words],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stderr is not None
        for line in process.stderr:
            if until is not None and until in line:
                process.send_signal(signal.SIGINT)
                break
        process.communicate()
        if process.returncode:
            raise SystemExit(f"lightwork {' '.join(words)} ended with {process.returncode}")
    after = os.times()
    used_s = after.children_user + after.children_system - before.children_user - before.children_system
    return used_s, clock.now() - start_s


def main() -> int:
    commands: dict[str, tuple[tuple[str, ...], str | None]] = {
        "demo": (("demo",), None),
        "serve": (("serve", "tiny:llama", "--use", "Sarathi(chunk=256)", "--port", "0"), "ready in"),
        "claims": (("claims", "sarathi"), None),
    }
    figures: dict[str, float] = {}
    for name, (words, until) in commands.items():
        used_s, seconds = measured(*words, until=until)
        figures |= {f"{name}_cpu_s": round(used_s, 2), f"{name}_s": round(seconds, 2)}
    report("first_minutes", **figures, bar_demo_cpu_s=DEMO_CPU_S)
    return int(figures["demo_cpu_s"] > DEMO_CPU_S)


if __name__ == "__main__":
    sys.exit(main())
