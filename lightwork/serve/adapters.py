"""Adapters that come, or come again, while requests are served."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightwork.models.adapters import Adapter
from lightwork.serve.engine import Engine

if TYPE_CHECKING:
    from lightwork.models import Model
    from lightwork.models.compiled import CompiledModel


async def put_adapter(engine: Engine, model: Model | CompiledModel, adapter: Adapter) -> str:
    """Serve an adapter under its name from the next request on; returns what `Request.model` says of it.

    Sequences go on with the version they came with, which is dropped when none is left. On the kernel, while
    steps run: what takes long is done beside it. Raises CheckpointError if it does not fit the model, and
    then nothing changes.
    """
    prepared = await engine.kernel.offload(model.adapters.prepare, adapter, background=True)
    in_use = {seq.request.model for seq in (*engine.waiting, *engine.running)}
    return model.adapters.publish(adapter.name, prepared, in_use)
