"""Adapters of `serve_peers.py`: one `run_*.py` per engine, each run by its own environment."""
