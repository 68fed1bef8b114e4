"""lightwork: parallel execution of machine-learning work, for real and in prediction."""

__version__ = "0.1.0"
__all__ = ["__version__"]
