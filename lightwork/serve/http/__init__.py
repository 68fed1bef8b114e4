"""The HTTP edge: an OpenAI-compatible server over a `Service`.

schemas.py      request bodies, as pydantic reads them, once per request
handling.py     what every route does with a request, from its first check to the wait for the reply
translate.py    a body to engine requests: defaults, limits, fields that are refused by name
conversation.py messages as chat templates expect them
constraints.py  the form that a body asks of the reply, or a refusal
tools.py        whether tools can be offered; tool_grammar.py: what a body demands of calls
choices.py      the choices entry of each reply and of each streamed piece
replies.py      deltas to OpenAI's reply objects, whole or streamed
completions.py  chat and completions; embeddings.py: embeddings; about.py: models, tokens, health, metrics
adapters/       other APIs over chat: /v1/responses, /v1/messages
errors.py       every error in OpenAI's shape
guard.py        body size, request ids, api key, errors nobody foresaw: around every request
metrics.py      Prometheus, an observer of the trace
app.py          the routes, and /openapi.json; main.py starts a server
"""
