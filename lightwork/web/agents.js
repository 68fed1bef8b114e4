"use strict";

/* The view of a population: its hosts, classes and rounds, who is slow, all agents by pages, one agent, and
   what was done. The server adds up (GET ui/agents); here it is shown and steered. Names come from agents:
   they become text, never markup. The parts:

   the frame, the figures, all agents, one agent, steering, what was done, replay, the feed, start */

const agents = (() => {
  const { plural, button, held, section, scroll, number, text, Rows } = agentParts;
  const PAGE = 50;
  const LOG = 500;
  const LONGEST_WAIT_MS = 8000;
  const view = {
    live: false,
    ended: false,
    stats: null,
    rounds: new agentParts.Latest(), // of a live run
    at: "", // of a saved run: the second that is shown
    last: null, // number of the last event that was heard
    wait_ms: 500, // until the feed is asked for again
    before: [], // of the page of the list: the last id of each page before it
    next: null,
    one: null,
  };

  /** What the server says; of a body, once it has done it. Throws an error with the server's own words. */
  async function ask(path, asked = {}, body = null) {
    const told = Object.entries({ ...asked, at: view.at });
    const query = new URLSearchParams(told.filter(([, value]) => value !== ""));
    const headers = { "content-type": "application/json" };
    const post = body ? { method: "POST", headers, body: JSON.stringify(body) } : {};
    const reply = await fetch(`ui/agents${path}?${query}`, post);
    const answer = await reply.json();
    if (!reply.ok) throw new Error(answer.error.message);
    return answer;
  }

  // -- the frame: tables and sections, made once

  const opens = (id, more = {}) => button(id, () => open(id), { class: "plain", "data-id": id, ...more });
  const idColumn = ["id", "", (agent) => opens(agent.id), true];
  const forColumn = number("for", (agent) => duration(agent.for_s));

  const hosts = new Rows(
    "agents-hosts",
    [
      text("host", (host) => (host.lost ? `${host.place} (lost)` : host.place)),
      ["", "", (host) => steering({ host: host.place }), true],
      ["", "", agentParts.states],
      ...["idle", "busy", "paused", "waiting", "messages"].map((name) => number(name)),
      number("bytes", (host) => agentParts.size(host.bytes)),
    ],
    (host) => host.place,
    (tr, host) => {
      tr.classList.toggle("lost", Boolean(host.lost));
      tr.title = host.lost ? String(host.lost) : "";
      allow(tr, !host.lost);
    },
  );
  const kinds = new Rows(
    "agents-kinds",
    [
      text("class"),
      number("count"),
      [
        "",
        "",
        (kind) =>
          agentParts.shares([
            ["part", kind.count],
            ["", view.stats.total - kind.count],
          ]),
      ],
    ],
    (kind) => kind.class,
  );
  const slowest = new Rows(
    "agents-slowest",
    [idColumn, text("class"), text("host"), text("method"), forColumn],
    (agent) => agent.id,
  );
  const listed = new Rows(
    "agents-listed",
    [
      ["id", "", (agent) => opens(agent.id, { tabindex: -1 }), true],
      text("class"),
      text("host"),
      text("state"),
      number("waiting"),
      text("method"),
      forColumn,
    ],
    (agent) => agent.id,
    (tr, agent) => {
      tr.onclick = (e) => e.target.closest("button") ?? open(agent.id);
    },
  );

  const option = (value) => el("option", { value }, value || "all");
  const choice = (id, name, values) =>
    el("label", {}, `${name} `, el("select", { id, onchange: () => list([]) }, ...values.map(option)));

  function listFrame() {
    const find = el("input", { id: "agents-find", type: "search", size: 8, onkeydown: onFind });
    const filters = [
      choice("agents-host", "Host", [""]),
      choice("agents-is", "State", ["", "idle", "busy", "paused", "killed"]),
      el("label", {}, "Id ", find),
    ];
    const turns = el(
      "div",
      { class: "bar turns" },
      button("Before", () => list(view.before.slice(0, -1)), { id: "agents-before" }),
      button("Next", () => view.next !== null && list([...view.before, view.next]), { id: "agents-next" }),
      button("Refresh", () => list(view.before)),
      el("p", { id: "agents-listed-words", class: "held", role: "status" }),
    );
    return section("agents-list", "All agents", filters, scroll("Agents of this page", listed.table), turns);
  }

  function roundsFrame() {
    const table = scroll("Rounds as a table", el("table", { id: "agents-round-table" }));
    const more = { id: "agents-more", ontoggle: () => view.stats && showRounds(view.stats) };
    const words = el("summary", {}, "Rounds as a table");
    const strips = el("div", { id: "agents-strips" });
    return section("agents-rounds", "Rounds", [], strips, el("details", more, words, table));
  }

  function frame() {
    const swatch = (tone) => el("span", { class: "swatch tone", "data-tone": tone });
    const legend = ["idle", "busy", "paused"].map((state) => el("li", {}, swatch(state), state));
    const state = el("p", { id: "agents-state", role: "status" });
    const log = el("ol", { id: "agents-log" });
    const logBox = el("div", { role: "log", "aria-labelledby": "agents-did-title" }, log);
    return el(
      "div",
      { id: "agents" },
      section(
        "agents-all",
        "Agents",
        [state, el("ul", { class: "legend" }, ...legend)],
        replay.box,
        el("p", { id: "agents-figures" }),
        scroll("Table of hosts", hosts.table),
      ),
      el(
        "div",
        { class: "figures" },
        section("agents-busy", "Busy for", [], el("div", { id: "agents-bins" })),
        section("agents-slow", "Slowest", [], scroll("Table of the slowest", slowest.table)),
        roundsFrame(),
        section("agents-classes", "Classes", [], scroll("Table of classes", kinds.table)),
      ),
      el(
        "div",
        { class: "who" },
        listFrame(),
        section("agents-one", "Agent", [], el("div", { id: "agents-one-body" })),
        section("agents-did", "What was done", [], logBox),
      ),
      sure.dialog,
    );
  }

  // -- the figures

  function show(told) {
    const stats = { ...told, rounds: view.live ? view.rounds.with(told.rounds ?? []) : told.rounds };
    view.stats = stats;
    view.ended ||= view.live && stats.ended;
    const busy = stats.hosts.reduce((sum, host) => sum + host.busy, 0);
    const facts = [
      plural(stats.total, "agent"),
      `${count(busy)} busy`,
      plural(stats.hosts.length, "host"),
      `${duration(stats.now_s)}${view.live ? " since the beginning" : ""}`,
      stats.label,
    ];
    $("agents-figures").textContent = facts.join("  ·  ");
    hosts.fill(stats.hosts);
    kinds.fill(stats.kinds);
    // Who points at one of the slowest is about to open it: they stay until then.
    if (!slowest.table.matches(":hover, :focus-within")) slowest.fill(stats.slowest);
    $("agents-bins").replaceChildren(agentParts.bins(stats.busy_for));
    showRounds(stats);
    const picked = $("agents-host");
    const { value } = picked;
    const names = ["", ...stats.hosts.map((host) => host.place)];
    if (names.length === picked.options.length) return;
    picked.replaceChildren(...names.map(option));
    picked.value = value;
  }

  /** Ask for all figures, at the second that is shown. */
  async function look() {
    const { at } = view;
    try {
      const stats = await ask("");
      if (view.at === at) show(stats);
    } catch (error) {
      notice(`The agents could not be had: ${error.message}`);
    }
  }

  function showRounds({ rounds, now_s }) {
    $("agents-strips").replaceChildren(agentParts.strips(rounds, now_s));
    if ($("agents-more").open) fillTable($("agents-round-table"), ...agentParts.roundLines(rounds));
  }

  // -- all agents, by pages

  /** Show the page after the last of these ids; those before it lead back. */
  async function list(before) {
    const words = $("agents-listed-words");
    const asked = { host: $("agents-host").value, state: $("agents-is").value };
    Object.assign(view, { asked, before, next: null });
    try {
      const found = [];
      let next = before.at(-1) ?? "";
      do {
        const told = await ask("/list", { ...asked, after: next, limit: PAGE - found.length });
        if (view.asked !== asked) return;
        found.push(...told.agents);
        next = told.next;
        words.textContent = "looking";
      } while (next !== null && found.length < PAGE);
      view.next = next;
      listed.fill(found);
      rove(listButtons()[0]);
      mark();
      const page = before.length ? `, page ${before.length + 1}` : "";
      words.textContent = found.length
        ? `${found[0].id} to ${found.at(-1).id}${page}${view.at === "" ? "" : `, at ${duration(view.at)}`}`
        : none(asked);
      $("agents-before").disabled = !before.length;
      $("agents-next").disabled = next === null;
    } catch (error) {
      if (view.asked === asked) words.textContent = `They could not be had: ${error.message}`;
    }
  }

  const none = ({ host, state }) =>
    view.live || host || state ? "There is none like that." : "This run was saved without single agents.";

  const listButtons = () => [...listed.body.querySelectorAll("button")];

  /** One button of the list can be reached by Tab: the one with the focus, else this one. */
  function rove(to) {
    const buttons = listButtons();
    const chosen = buttons.includes(document.activeElement) ? document.activeElement : to;
    for (const each of buttons) each.tabIndex = each === chosen ? 0 : -1;
  }

  function onFind(e) {
    const id = e.target.value.trim();
    if (e.key === "Enter" && id) open(id);
  }

  /** ↑ and ↓ in the table of agents; Esc closes the one that is shown. */
  function onKeys(e) {
    if (document.querySelector("dialog[open]")) return;
    if (e.key === "Escape" && view.one !== null) closeOne();
    const by = { ArrowUp: -1, ArrowDown: 1 }[e.key];
    const buttons = by ? listButtons() : [];
    const i = buttons.indexOf(document.activeElement);
    if (i < 0) return;
    e.preventDefault();
    buttons[Math.min(Math.max(i + by, 0), buttons.length - 1)].focus();
    rove();
  }

  // -- one agent

  /** Show an agent. focus: go there, as after a click on it. */
  async function open(id, { focus = true } = {}) {
    view.one = id;
    mark();
    const title = $("agents-one-title");
    const body = $("agents-one-body");
    const shownNow = (words, ...inside) => {
      const at = body.contains(document.activeElement) ? document.activeElement.textContent : null;
      title.textContent = words;
      body.replaceChildren(...inside);
      if (at) [...body.querySelectorAll("button")].find((each) => each.textContent === at)?.focus();
    };
    try {
      const told = await ask("/one", { id });
      if (view.one === id) shownNow(`Agent ${told.id}`, ...about(told));
    } catch (error) {
      if (view.one === id) shownNow(`Agent ${id}`, el("p", { class: "wrong" }, error.message));
    }
    if (!focus || view.one !== id) return;
    title.tabIndex = -1;
    title.focus({ preventScroll: true });
    $("agents-one").scrollIntoView({ block: "nearest" });
  }

  const refreshOne = () => view.one !== null && open(view.one, { focus: false });

  function closeOne() {
    const from = listButtons().find((each) => each.dataset.id === view.one);
    view.one = null;
    mark();
    $("agents-one-title").textContent = "Agent";
    const words = "Choose an agent to see what it is, what it holds, and what happened to it.";
    $("agents-one-body").replaceChildren(held(words));
    from?.focus();
  }

  function mark() {
    for (const each of listButtons()) {
      const tr = each.closest("tr");
      if (each.dataset.id === view.one) tr.setAttribute("aria-current", "true");
      else tr.removeAttribute("aria-current");
    }
  }

  function about(agent) {
    const steer = steering({ agent: agent.id });
    steer.append(
      button("Refresh", () => open(agent.id, { focus: false })),
      button("Close", closeOne),
    );
    allow(steer, agent.state !== "killed");
    const known = [
      ["class", agent.class],
      ["host", agent.host],
      ["state", agent.state],
      ["waiting", plural(agent.waiting, "message")],
    ];
    if (agent.method) known.push(["method", `${agent.method}, for ${duration(agent.for_s)}`]);
    const memory = agent.fields.map(({ name, value }) => [name, el("pre", {}, value)]);
    const happened = agent.events.map((e) => [duration(e.t_s), `${e.what}  ${e.text ?? ""}`]);
    const part = (title, rows, none) => [
      el("h3", {}, title),
      rows.length ? agentParts.facts(rows) : held(none),
    ];
    return [
      steer,
      scroll(
        `About agent ${agent.id}`,
        agentParts.facts(known),
        ...part(
          "Memory",
          memory,
          view.live ? "It holds nothing." : "What it held is not kept in a saved run.",
        ),
        ...part("Events", happened, "Nothing has happened to it."),
      ),
    ];
  }

  // -- steering

  const DONE = { pause: "paused", resume: "resumed", kill: "killed" };
  const nameOf = (target) => target.host ?? target.agent;

  /** Buttons for a host or an agent: {host} or {agent}. */
  function steering(target) {
    const one = (what) =>
      button(what, () => act(what, target), {
        class: what === "kill" ? "kill" : "",
        "aria-label": `${what} ${nameOf(target)}`,
        "data-do": what,
      });
    return el("div", { class: "buttons steer" }, ...Object.keys(DONE).map(one));
  }

  /** Whether the buttons in a box may be pressed. A run that cannot be steered has none. */
  function allow(box, on) {
    for (const each of box.querySelectorAll("[data-do]")) {
      each.hidden = !view.stats.steerable;
      each.disabled = !on || view.ended;
    }
  }

  async function act(what, target) {
    if (what === "kill" && !(await sure.ask(titleOf(target)))) return;
    try {
      await ask("/do", {}, { do: what, ...target });
    } catch (error) {
      notice(`${nameOf(target)} was not ${DONE[what]}: ${error.message}`);
    }
  }

  const sure = agentParts.question("agents-sure", "What it holds is lost for good.", "Kill", "Keep");

  function titleOf(target) {
    const host = view.stats.hosts.find((each) => each.place === target.host);
    const all = host ? ` and its ${plural(host.idle + host.busy, "agent")}` : "";
    return `Kill ${nameOf(target)}${all}?`;
  }

  // -- what was done, the newest first

  function log(line, t_s) {
    line.dataset.t = t_s;
    $("agents-log").prepend(line);
    while ($("agents-log").childElementCount > LOG) $("agents-log").lastChild.remove();
  }

  function did(done) {
    const who = done.agent ? opens(done.agent) : done.host;
    const by = done.by === "page" ? ", from a page" : "";
    log(el("li", {}, el("time", {}, duration(done.t_s)), ` ${DONE[done.do] ?? done.do} `, who, by), done.t_s);
    if (!view.live) return;
    later("agents list", () => list(view.before), 200);
    later("agents one", refreshOne, 200);
  }

  function gap({ from, to }) {
    const words = `A gap: events ${from} to ${to} came while this page was not connected, and are lost.`;
    log(el("li", { class: "gap" }, words), view.stats?.now_s ?? 0);
  }

  // -- replay of a saved run

  const replay = agentParts.slider("agents-at", showAt);

  async function showAt(at) {
    view.at = at;
    later("agents list", () => list(view.before), 250);
    later("agents one", refreshOne, 250);
    for (const line of $("agents-log").children) line.classList.toggle("later", Number(line.dataset.t) > at);
    await look();
  }

  // -- the feed: what was missed while the line was down is asked for by the number of the last event

  function follow() {
    const feed = new EventSource(`ui/agents/feed${view.last === null ? "" : `?last=${view.last}`}`);
    const on = (name, take) =>
      feed.addEventListener(name, (e) => {
        if (e.lastEventId) view.last = e.lastEventId;
        take(JSON.parse(e.data));
      });
    on("stats", show);
    on("round", (round) => {
      view.stats.rounds = view.rounds.with([round]);
      later("agents rounds", () => showRounds(view.stats), 200);
    });
    on("did", did);
    on("gap", gap);
    on("end", () => endFeed(feed));
    feed.onopen = () => {
      view.wait_ms = 500;
      say("connected");
      if (view.live) look(); // of what came while nobody listened
    };
    feed.onerror = () => {
      feed.close();
      say("the line is lost, trying again", true);
      setTimeout(follow, view.wait_ms);
      view.wait_ms = Math.min(LONGEST_WAIT_MS, 2 * view.wait_ms);
    };
  }

  function endFeed(feed) {
    feed.close();
    view.ended = true;
    say(view.live ? "the run has ended" : "a saved run");
    if (view.live) show(view.stats);
  }

  function say(words, lost = false) {
    $("agents-state").textContent = words;
    $("agents-state").classList.toggle("lost", lost);
  }

  // -- start

  /** Show the view above the timeline. source: what GET ui/source said. */
  async function start(source) {
    view.live = source.live;
    $("notice").after(frame());
    closeOne();
    document.addEventListener("keydown", onKeys);
    KEYS.splice(-2, 0, [["a"], "go to the agents; Enter shows one", () => listButtons()[0]?.focus(), "a"]);
    await look();
    if (!view.stats) return;
    if (!view.live) replay.set(view.stats.now_s);
    follow();
    await list([]);
  }

  return { start };
})();
