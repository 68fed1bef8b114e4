"""What every benchmark writes: one JSON line with the figures and where they were taken."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from typing import Any


def report(name: str, **figures: Any) -> None:
    """Print a JSON line: the figures, and commit, CPU, threads and load."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    print(
        json.dumps(
            {
                "benchmark": name,
                **figures,
                "commit": commit.stdout.strip(),
                "cpu": platform.processor() or platform.machine(),
                "threads": os.cpu_count(),
                "load": round(os.getloadavg()[0], 2),
            }
        )
    )
