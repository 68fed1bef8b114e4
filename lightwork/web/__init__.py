"""The page at /ui: a live timeline of what is served, saved runs, and the scoreboard of claims.

page.html     the page: HTML, CSS and JavaScript in one file, without a build step
feed.py       the spans of a running server, as server-sent events
routes.py     what the page asks for, on the server or over a saved trace
agent_*.py    what it asks about a population of agents, and the answers
monitor.py    a population that runs, watched and steered
ring.py       its latest events, for pages that come back; background.py: its server
replay.py     a population in a saved trace
same_origin.py  only a page of this server may change something
uPlot.*       its line charts: uPlot 1.6.32 (MIT), as published

The interface is `add_page(loaded)` for a server, `Monitor` for agents and `show(file)` for a saved trace. The
page computes what it shows from spans alone, so a view is added in page.html; the server is asked only for
`why`, and for populations, whose spans are too many.
"""
