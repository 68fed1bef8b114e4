"""lightwork through its public pieces: a plan, its engine, and a load offered at once."""

from __future__ import annotations

from collections.abc import Sequence

from worker import Options, Tokens, run

import lightwork
from lightwork.decode.sampling import Sampling
from lightwork.models import read_shape
from lightwork.runtime.clock import WallClock
from lightwork.runtime.kernel import Kernel
from lightwork.serve.opening import open_engine
from lightwork.serve.plan import Plan
from lightwork.serve.sequence import Request
from lightwork.serve.sequence import Sequence as Seq
from lightwork.serve.simulate import run_load

GREEDY = Sampling(temperature=0.0)


class Lightwork:
    """One engine, kept from command to command."""

    def __init__(self, options: Options) -> None:
        model = f"hf:{options.model}"
        per_token = read_shape(model).kv_bytes_per_token("float32")
        plan = Plan(
            model=model,
            use=tuple(options.use),
            max_len=options.max_len,
            kv_bytes=options.kv_tokens * per_token,
            max_seqs=options.seqs,
            prefix_cache=options.prefixes,
            threads=options.threads,
        )
        self._engine, loaded, _ = open_engine(plan, Kernel(WallClock()))
        loaded.warm_up()
        self.versions = {"lightwork": lightwork.__version__}

    def generate(self, prompts: Sequence[Tokens], lengths: Sequence[int]) -> list[Tokens]:
        seqs = self._served(prompts, lengths, [0.0] * len(prompts))
        return [list(seq.tokens[len(p) :]) for seq, p in zip(seqs, prompts, strict=True)]

    def offered(
        self, prompts: Sequence[Tokens], lengths: Sequence[int], at_s: Sequence[float]
    ) -> list[float]:
        seqs = self._served(prompts, lengths, at_s)
        return [(seq.finished_s or 0.0) - seqs[0].arrived_s for seq in seqs]

    def _served(self, prompts: Sequence[Tokens], lengths: Sequence[int], at_s: Sequence[float]) -> list[Seq]:
        requests = [
            Request(prompt=tuple(p), max_tokens=n, sampling=GREEDY)
            for p, n in zip(prompts, lengths, strict=True)
        ]
        return run_load(self._engine, at_s, requests)


if __name__ == "__main__":
    run(Lightwork)
