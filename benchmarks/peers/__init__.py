"""Adapters of `serve_peers.py`: one file per engine, each run by the interpreter of that engine's environment."""
