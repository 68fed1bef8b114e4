"""lightwork: parallel execution of machine-learning work, for real and in prediction."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightwork.serve.offline import LLM
    from lightwork.serve.plan import Plan

__version__ = "0.1.0"
__all__ = ["LLM", "Plan", "__version__"]

_LAZY = {"LLM": "lightwork.serve.offline", "Plan": "lightwork.serve.plan"}


def __getattr__(name: str) -> Any:
    """Import what is asked for, so that `import lightwork` costs next to nothing."""
    if name not in _LAZY:
        raise AttributeError(f"module 'lightwork' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
