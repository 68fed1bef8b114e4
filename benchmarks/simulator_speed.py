"""How fast is a cluster simulated? The same trace, model, device and scheduler in Vidur.

    python benchmarks/simulator_speed.py --vidur FOLDER --python PYTHON

FOLDER is a checkout of Vidur with its data, PYTHON one that has its requirements. Without them only our own
figures are taken: an hour of Llama-3-70B on eight A100 at ten requests per second (the bar is a minute), and
microseconds per output token.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
from _report import report

from lightwork.serve.lengths.published import Published
from lightwork.serve.loads import Load
from lightwork.serve.loads.poisson import Poisson
from lightwork.serve.loads.recorded import VIDUR, Recorded
from lightwork.serve.plan import Plan
from lightwork.serve.schedulers.sarathi import Sarathi
from lightwork.serve.simulate import simulate

CHUNK, MAX_SEQS = 512, 128
HOUR_S, RATE = 3600, 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--vidur", type=Path, help="a checkout of Vidur with its data")
    parser.add_argument("--python", default=sys.executable, help="with the requirements of Vidur")
    parser.add_argument("--requests", type=int, default=512)
    parser.add_argument("--rate", type=float, default=5.0, help="requests per second")
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    if options.vidur:
        _beside(options)
    _hour()


def _ours(plan: Plan, load: Load) -> dict[str, float]:
    begun = perf_counter()
    run = simulate(plan, load, keep_spans=False)
    seconds = perf_counter() - begun
    tokens = run.summary.output_tokens_per_s * run.summary.duration_s
    return {"seconds": seconds, "simulated_s": run.summary.duration_s, "us_per_token": 1e6 * seconds / tokens}


def _hour() -> None:
    plan = Plan(model="shape:llama-3-70b", on="sim:a100x8", max_waiting=1 << 20)
    lengths = Published(trace="azure-conversation", max_len=8192)
    load = Poisson(rate=RATE, num_requests=int(HOUR_S * RATE), lengths=lengths)
    report("simulated_hour", **{k: round(v, 2) for k, v in _ours(plan, load).items()}, bar_s=60)


def _beside(options: argparse.Namespace) -> None:
    plan = Plan(
        model="shape:llama-3-8b",
        on="sim:a100",
        use=(Sarathi(chunk=CHUNK),),
        max_seqs=MAX_SEQS,
        prefix_cache=False,
    )
    with TemporaryDirectory() as folder:
        trace = Path(folder, "trace.csv")
        _write(trace, options.requests, options.rate)
        pairs = []
        for _ in range(options.pairs):
            command = [options.python, Path(__file__).parent / "peers" / "run_vidur.py", trace]
            told = subprocess.run(
                [*map(str, command), str(CHUNK), str(MAX_SEQS)],
                cwd=options.vidur,
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            pairs.append((_ours(plan, Recorded(path=str(trace))), json.loads(told.splitlines()[-1])))
    ratios = sorted(theirs["seconds"] / ours["seconds"] for ours, theirs in pairs)
    ours, theirs = pairs[0]
    report(
        "simulator_speed",
        ratio=round(median(ratios), 1),
        ratio_min=round(ratios[0], 1),
        ratio_max=round(ratios[-1], 1),
        pairs=len(pairs),
        requests=options.requests,
        seconds=round(ours["seconds"], 3),
        vidur_seconds=round(theirs["seconds"], 3),
        vidur_events=theirs["events"],
        simulated_s=round(ours["simulated_s"], 1),
        vidur_simulated_s=round(theirs["simulated_s"], 1),
    )


def _write(file: Path, num_requests: int, rate: float) -> None:
    rng = np.random.default_rng(0)
    lengths = Published(trace="azure-conversation", max_len=8192)
    arrivals = Poisson(rate=rate, num_requests=num_requests, lengths=lengths).arrivals(rng)
    with file.open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(VIDUR)
        rows.writerows((a.at_s, a.prompt_len, a.output_len) for a in arrivals)


if __name__ == "__main__":
    main()
