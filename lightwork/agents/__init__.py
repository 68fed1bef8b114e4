"""Agent programs and the worlds that small models learn to act in.

worlds/   generators of episodes: a prompt, its tools, the right answer, and a judge

To add a world: one file in worlds/ with a class that has `sample(rng, level)`.
"""
