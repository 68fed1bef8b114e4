"""What every benchmark writes: one JSON line with the figures and where they were taken."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import Any

from lightwork.claims.results import provenance
from lightwork.cluster.processor import instructions, processor_name


def report(name: str, **figures: Any) -> dict[str, Any]:
    """Print a JSON line and return its figures, with date, commit, processor, threads and load."""
    row = {
        **figures,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": provenance()["commit"],
        "cpu": processor_name(),
        "instructions": list(instructions()),
        "threads": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
    }
    print(json.dumps({"benchmark": name, **row}), flush=True)
    return row
