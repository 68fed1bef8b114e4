"""The page at /ui: a live timeline of what is served, saved runs, populations, and the scoreboard of claims.

page.html           the page: HTML, CSS and JavaScript, without a build step
runs.js             of the page: what follows from the spans of a run
agents.js           of the page: the view of a population, with agents.css; made of agents_parts.js
feed.py             the spans of a running server, as server-sent events
monitor.py          a population while it runs: agent_answers.py, agent_routes.py, ring.py
replay.py           a population in a saved trace
background.py       a page's server beside a program that does something else
same_origin.py      no page of somebody else's changes anything
routes.py           what the page asks for, on the server or over a saved trace
uPlot.*             its line charts: uPlot 1.6.32 (MIT), as published

The interface is `add_page(loaded)` for a server, `Monitor` for a population and `show(file)` for a saved
trace. What runs did is computed in the page, from spans alone; only `why` is asked of the server. Of a
population the server adds up, since it may be large.
"""
