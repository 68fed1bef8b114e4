"""Agent programs, the models and tools they use, and the worlds that small models learn to act in.

chat_model.py  what is said to a model and what comes back; `ChatModel`. Those there are: engine_model.py (the
               serving engine here, for real, simulated or a teacher), http_model.py (a URL), profile_model.py
               (latency and price), replay_model.py (what was said before)
policies.py    who says what a model would; teacher.py: a policy inside the engine, token by token
api_key.py     what a server behind a URL is shown
replies.py     from texts to replies with calls; conversation_text.py: back from a prompt's text
tool.py        `Tool`, `Toolbox`: the one place where calls are checked, limited and carried out, as
               tool_runs.py does, what they print in quiet.py, what their child processes do in
               child_output.py, what they return in shown_values.py
functions.py   tools from Python functions, by their signatures.py; mcp_client.py: from MCP servers;
               mcp_server.py: ours for MCP clients
context.py     what a program works with, and its budget
aios/          the system between agents and all that they share: calls queued, checked and recorded
population.py  who there is: a configuration, exact counts, attributes; personas.py makes somebody of them
society.py     where agents live: environments, events, `Group`
number_game.py a game for a million: its players, their models, and simulate.py, which plays it anywhere
programs/      how a question becomes an answer; the interface is `Program.run(context, question)`
worlds/        generators of episodes: a prompt, its tools, the right answer, and a judge

All of it awaits kernel futures and effects only: a program runs on a real clock and on a virtual one. To add
a program: one file in programs/. To add a world: one file in worlds/ with a class that has
`sample(rng, level)`.
"""
