"""The HTTP edge: an OpenAI-compatible server over a `Service`.

schemas.py      request bodies, as pydantic reads them, once per request
translate.py    a body to engine requests: defaults, limits, fields that are refused by name
constraints.py  the form that a body asks of the reply, or a refusal
choices.py      the choices entry of each reply and of each streamed piece
replies.py      deltas to OpenAI's reply objects, whole or streamed
errors.py       every error in OpenAI's shape
guard.py        body size, request ids, api key, errors nobody foresaw: around every request
metrics.py      Prometheus, an observer of the trace
app.py          the routes; main.py starts a server
"""
