"""The page at /ui: a live timeline of what is served, saved runs, and the scoreboard of claims.

page.html        the page: HTML, CSS and JavaScript in one file, without a build step
agents.js        its view of a population, with agents.css; made of agents_parts.js
feed.py          the spans of a running server, as server-sent events
routes.py        what the page asks for, on the server or over a saved trace
uPlot.*          its line charts: uPlot 1.6.32 (MIT), as published

The interface is `add_page(loaded)` for a server and `show(file)` for a saved trace. The page computes
what it shows from spans alone, so a view is added in page.html; only `why` is asked of the server.
"""
