"""The engine that serves language models, for real and in simulation.

engine.py      the loop: plan, draft, run, verify, commit; the only owner of mutable state
sequence.py    `Request` (what was asked) and `Sequence` (how far it is)
schedulers/    which tokens of which sequences run next (`Scheduler.plan(state, view) -> Step`)
loads/         when requests come; lengths/ how long they are
simulate.py    a load offered to an engine, on any clock; replay.py a recorded one again, in simulation
runner.py      who carries a step out (`Runner.run(step) -> Scores`)
scores.py      the choices made from a step's logits
notes.py       what an engine tells the trace
compositions/  several models behind one engine; composing.py: what that needs beside one model
expert_runner.py   steps that wait for their model's weights; prompt_router.py: whose prompt it is
block_cluster.py   a simulated cluster of blocks (catalogue.py, block_prices.py); hops/ between them
embedding.py   vectors of texts, which runners compute beside their steps
transfers.py   KV that comes from another engine, or goes to host memory and back, beside the steps
fleet.py       several engines behind a router (routers/): to callers one engine
remote.py      an engine in another process or Ray actor, started again when it is lost; member.py is that
               process, messages.py what they say, deployment.py starts them
workers.py     a model as processes, tensor-parallel ranks and pipeline stages; worker.py is one of them
plan.py        a model, a place and techniques, put together; values nobody set are derived, with a reason
opening.py     the engine of a plan on this machine; simulated.py: on the virtual clock
offline.py     `LLM`: prompts in, texts out, on the caller's thread
text.py        tokens to text while they arrive; calls.py: calls of tools in it; call_grammar.py: the grammar
               that holds a model to them
service.py     an engine on its own thread, for callers that live in asyncio
http/          the OpenAI-compatible server

There are no phases: a step is a list of chunks (sequence, start, count), and `computed` chases `known`.
Prefill, decode, a prefix hit, resuming after preemption and verifying a draft are all that one line.
"""
