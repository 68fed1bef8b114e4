"""An operating system for agents: what a program asks of models, tools, memory and storage are system calls.

system.py     `AIOS`: takes the calls, queues each before its resource, carries it out
syscall.py    one call, and how long it waited and ran
engine_log.py when the serving engine ran a call, read off the engine's own trace
text_turns.py turns at a model that is not ours: the text so far is sent again
access.py     who may do what, and who was refused
services.py   memory and storage as tools
memory.py     what agents remember: a block of memory each, the rest on disk
storage.py    files with versions
text_index.py search over their texts
arguments.py  whether arguments fit a tool's schema

Programs are those of `agents.programs`, as they are: the context that `AIOS.context` makes has a model and a
toolbox whose calls are system calls. In the serving engine it is `ContextSwitch` that gives turns.
"""
