"""Questions about documents: an offline batch in which many requests share a long prefix.

Paper:  "BatchLLM: Optimizing Large Batched LLM Inference with Global Prefix Sharing and Throughput-oriented
        Token Batching", 2024
Idea:   each document is the prefix of several requests; all are there at once, shuffled
Shapes: rng -> about num_documents * degree arrivals at 0 s
Cost:   O(requests)
Claims: -
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lightwork.errors import RangeError
from lightwork.serve.lengths import Length
from lightwork.serve.lengths.lognormal import Lognormal
from lightwork.serve.loads import Arrival


@dataclass(frozen=True, slots=True, kw_only=True)
class Documents:
    """document: median tokens of a document, sigma: spread of their logarithms.

    degree: mean requests per document, at least one each. lengths: of a question and its answer.
    """

    num_documents: int = 16
    degree: float = 8.0
    document: int = 1024
    sigma: float = 0.0
    lengths: Length = field(default_factory=Lognormal)

    def __post_init__(self) -> None:
        if min(self.num_documents, self.document) < 1 or self.degree < 1 or self.sigma < 0:
            raise RangeError(
                f"{self!r} cannot be offered",
                expected="num_documents, document and degree >= 1, sigma >= 0",
                fix="Documents(degree=8)",
            )

    def arrivals(self, rng: np.random.Generator) -> list[Arrival]:
        sizes = np.rint(self.document * np.exp(self.sigma * rng.standard_normal(self.num_documents)))
        asked = 1 + rng.poisson(self.degree - 1, self.num_documents)
        of = np.repeat(np.arange(self.num_documents), asked)
        rng.shuffle(of)
        drawn = self.lengths.draw(rng, len(of))
        return [
            Arrival(0.0, p, o, shared=int(d), shared_len=max(1, int(sizes[d])))
            for d, (p, o) in zip(of, drawn, strict=True)
        ]
