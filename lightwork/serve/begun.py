"""An engine for decodes alone, as it is where engines for prompts take no time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from lightwork.runtime.kernel import Kernel
from lightwork.serve.engine import Engine
from lightwork.serve.notes import Notes
from lightwork.serve.schedulers import Chunk, Step
from lightwork.serve.sequence import Request, Sink, begin
from lightwork.serve.sequence import Sequence as Seq


class Begun:
    """Simulated: requests come with their prompt computed and a first token. The engine pulls the KV when it
    admits them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._ids = count()
        self._notes = Notes(engine.kernel, "prompts")

    @property
    def kernel(self) -> Kernel:
        return self.engine.kernel

    @property
    def vocab_size(self) -> int:
        return self.engine.vocab_size

    async def run(self) -> None:
        await self.engine.run()

    async def drained(self) -> None:
        await self.engine.drained()

    def submit(self, request: Request, sink: Sink | None = None) -> list[Seq]:
        (seq,) = begin(request, sink, self._ids, self.kernel.now())
        self._notes.moment("arrive", seq, prompt=seq.prompt_len, max_tokens=request.max_tokens, n=1)
        prompt = Chunk(seq, 0, seq.prompt_len)
        seq.computed, seq.first_token_s = seq.prompt_len, self.kernel.now()
        seq.tokens.append(0)
        if not seq.output_left:
            seq.finished, seq.finished_s = "length", self.kernel.now()
            self._notes.moment("finish", seq, reason="length", output=1)
        self._notes.step(Step(chunks=[prompt]), 0, self.kernel.now(), [1], waiting=0, running=0, kv_usage=0.0)
        if seq.finished is None:
            self.engine.adopt(seq, self)
        elif sink is not None:
            sink.finish(seq, "length", None)
        return [seq]

    # -- where the KV is

    @property
    def pool(self) -> object:
        return self.engine.pool

    def lent(self, seq: Seq) -> Sequence[int]:
        return ()

    def give_up(self, seq: Seq) -> None:
        """It took no room."""
