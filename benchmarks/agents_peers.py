"""What agents cost, beside what others take for the same: `python benchmarks/agents_peers.py [--only PART]`.

Each part runs ours and a peer's in turn and prints one JSON line: CPU microseconds of all processes and their
ratio (the peer's over ours: the median of the pairs, the least and the most). A peer that is not installed is
printed as absent; `python benchmarks/peers/install.py ENVIRONMENTS agentscope` makes the environment of one
that needs its own, for `--peers ENVIRONMENTS`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from peers import light_actors, light_programs

PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "actors": light_actors.compare,
    "graph": light_programs.graph,
    "runs": light_programs.runs,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=[*PARTS], default=[*PARTS])
    parser.add_argument("--peers", type=Path, help="the folder of the peers' environments")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--agents", type=int, default=1_000_000, help="in the round of many actors")
    options = parser.parse_args()
    for part in options.only:
        PARTS[part](options)


if __name__ == "__main__":
    main()
