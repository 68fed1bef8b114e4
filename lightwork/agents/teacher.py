"""A policy as a model of the serving engine: logits that follow what a policy says.

Tokenizer, scheduler, prefix cache, preemption, streaming, stop strings, log-probabilities, sampling and the
OpenAI-compatible server do their real work, and what must come out is known in closed form: the greedy text
is the policy's, log-probabilities are the logarithms of its probabilities, sampled texts have its
frequencies.

    engine, model, settings = open_teacher(policy, kernel)           # as `open_engine` gives them
    with BackgroundServer(load(plan, opener=partial(open_teacher, policy))) as url: ...    # over HTTP

The keys and values of this model are the tokens themselves, in the slots where a real model's would be, and
it reads a text from there alone. So a block that is shared, moved or freed wrongly gives a wrong text.
"""

from __future__ import annotations

from lightwork.agents.policies import Policy
from lightwork.runtime.kernel import Kernel
from lightwork.runtime.progress import Progress
from lightwork.serve.engine import Engine
from lightwork.serve.plan import Plan, Setting


class TeacherLM:
    """A model for `LocalRunner`, and `AnyModel` for servers. Its tokenizer and template are tiny:llama's."""

    def __init__(self, policy: Policy) -> None: ...


def open_teacher(
    policy: Policy, plan: Plan | None, kernel: Kernel, progress: Progress | None = None
) -> tuple[Engine, TeacherLM, list[Setting]]:
    """An engine whose model is a TeacherLM. plan: its techniques and limits; its model and place are not
    looked at."""
