"""Whatever proposes tokens, and the verifier that keeps the output exact, or else says so in its name.

proposers/  one file per way to guess the next tokens (`Proposer.begin` gives an engine its `Drafter`)
verifiers/  one file per way to judge the guesses (`Verifier.verify`)
sampling.py the choice of a token as a pure function of (logits, seed, position)
choose.py   the same choices for all rows of a step at once, compiled where numba is there
constraints.py  what a text has to be (JSON of a schema, a grammar, ...), and which tokens keep it so
tree.py     which tree of guesses is worth so many rows

To add a technique: one file in its kind's folder, named after it. The engine calls every drafter and
verifier the same way; neither sees the scheduler, the engine's cache or the clock. A drafter that keeps
something of a sequence is told when that has left.
"""
