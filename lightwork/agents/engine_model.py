"""The serving engine as a model that programs talk to: in this process, on the program's own kernel.

    model = open_model("tiny:llama", kernel)                                  # for real, on this machine
    model = open_model(Plan(model="shape:llama-3-8b", on="sim:h100x8"), kernel, policy)   # in virtual time
    model = open_model("tiny:llama", kernel, policy)                          # a teacher, see teacher.py
    reply = await model.stream(ChatRequest((Message("user", "hello"),))).reply()

Sequences of all programs share the engine's steps, KV blocks and prefix cache.
"""

from __future__ import annotations

from lightwork.agents.chat_model import ChatRequest, ChatStream
from lightwork.agents.policies import Policy
from lightwork.models.tokenizer import Tokenizer
from lightwork.runtime.kernel import Kernel
from lightwork.serve.engine import Engine
from lightwork.serve.fleet import Fleet
from lightwork.serve.plan import Plan


class EngineModel:
    """An engine that runs on this kernel. name: as users know it. engine, tokenizer: to look at.

    Replies are held to the tools' schemas where one says `"strict": True`, as with the server. Their picks
    are always told. A reply that is cancelled frees its blocks.
    """

    name: str
    engine: Engine | Fleet
    tokenizer: Tokenizer

    def stream(self, request: ChatRequest) -> ChatStream: ...

    def close(self) -> None:
        """End the engine and what computes for it."""


def open_model(
    plan: Plan | str, kernel: Kernel, policy: Policy | None = None, *, name: str = ""
) -> EngineModel:
    """Load a plan's model, start its engine on the kernel.

    policy: what it says. Needed where the plan is simulated (`on="sim:..."`): an engine there lets time pass
    and computes nothing. Elsewhere the engine's model is a TeacherLM of it. Raises SpecError,
    CheckpointError, CapacityError.
    """
