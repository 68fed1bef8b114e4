"use strict";

/* Parts of the view of a population: tables, bars, the histogram, strips of rounds, a slider over time, and a
   question. Each is made of what it is given, and asks no server. They stand on the small things of page.html;
   names become text, never markup. */

const agentParts = (() => {
  // -- small things

  const LONG = 20;
  const plural = (n, name) => `${count(n)} ${name}${n === 1 ? "" : "s"}`;
  const button = (words, onclick, more = {}) => el("button", { onclick, ...more }, words);
  const held = (words) => el("p", { class: "held" }, words);
  const few = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

  function size(bytes) {
    const power = Math.min(4, Math.max(0, Math.floor(Math.log(bytes || 1) / Math.log(1000))));
    return bytes == null ? "–" : `${short(bytes / 1000 ** power)} ${["B", "kB", "MB", "GB", "TB"][power]}`;
  }

  function section(id, title, bar, ...inside) {
    const heading = el("h2", { id: `${id}-title` }, title);
    const top = el("div", { class: "bar" }, heading, ...bar);
    return el("section", { id, "aria-labelledby": `${id}-title` }, top, ...inside);
  }

  const scroll = (label, ...inside) =>
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, ...inside);

  // -- tables

  const number = (name, read = (item) => count(item[name])) => [name, "number", read];
  const text = (name, read = (item) => item[name] ?? "–") => [name, "name", read];

  /** A table whose rows are made once for each key and then kept up to date: focus and clicks stay.
   *  columns: [head, class, read, once]; read gives a text or an element, which `once` never makes again.
   *  each(tr, item): called of every row after it is filled. */
  class Rows {
    made = new Map();
    constructor(id, columns, key, each = () => {}) {
      Object.assign(this, { columns, key, each });
      this.body = el("tbody");
      const head = ([name, kind]) =>
        el(name ? "th" : "td", { scope: name ? "col" : false, class: kind }, name);
      this.table = el("table", { id }, el("thead", {}, el("tr", {}, ...columns.map(head))), this.body);
    }
    row(item) {
      const cell = ([, kind, read, once]) => el("td", { class: kind }, ...(once ? [read(item)] : []));
      return el("tr", {}, ...this.columns.map(cell));
    }
    fill(items) {
      const rows = new Map();
      for (const item of items) {
        const tr = this.made.get(this.key(item)) ?? this.row(item);
        rows.set(this.key(item), tr);
        this.columns.forEach(([, , read, once], i) => {
          const told = once ? null : read(item);
          if (told instanceof Node) tr.cells[i].replaceChildren(told);
          else if (!once && tr.cells[i].textContent !== told)
            Object.assign(tr.cells[i], { textContent: told, title: told.length > LONG ? told : "" });
        });
        this.each(tr, item);
      }
      this.made = rows;
      const all = [...rows.values()];
      if (all.length === this.body.rows.length && all.every((tr, i) => this.body.rows[i] === tr)) return;
      const focused = document.activeElement;
      this.body.replaceChildren(...all);
      if (focused !== document.activeElement && focused?.isConnected) focused.focus({ preventScroll: true });
    }
  }

  /** Names with what they are, one under the other. */
  function facts(pairs) {
    const line = ([name, value]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, value));
    return el("table", {}, el("tbody", {}, ...pairs.map(line)));
  }

  // -- pictures

  /** Parts of a whole beside each other: [tone, number] each. */
  function shares(parts) {
    const one = ([tone, n]) => el("span", { "data-tone": tone, style: `flex: ${n}` });
    return el("div", { class: "shares", "aria-hidden": "true" }, ...parts.filter(([, n]) => n > 0).map(one));
  }

  /** idle and busy beside each other, and under them how many of both are paused. */
  function states({ idle, busy, paused }) {
    const both = shares([
      ["idle", idle],
      ["busy", busy],
    ]);
    const below = shares([
      ["paused", paused],
      ["", paused && idle + busy - paused],
    ]);
    return el("div", { class: "states" }, both, below);
  }

  /** How many agents are in each stretch of time; empty stretches at both ends are left out. */
  function bins({ edges_s, counts, every }) {
    const first = counts.findIndex((n) => n > 0);
    if (first < 0) return held("Nobody is busy.");
    const low = Math.max(0, first - 1);
    const some = counts.slice(low, counts.findLastIndex((n) => n > 0) + 2);
    const most = Math.max(...some);
    const step = Math.ceil(some.length / 5);
    const range = (i) => `${duration(edges_s[low + i])} to ${duration(edges_s[low + i + 1])}`;
    const told = some.map((n, i) => (n ? `${count(n)} for ${range(i)}` : "")).filter(Boolean);
    const bin = (n, i) =>
      el(
        "div",
        { title: `${range(i)}: ${count(n)}` },
        el("span", { class: "many" }, n ? few.format(n) : ""),
        el("div", { class: "bin", style: `height: ${(n / most) * 84}%` }),
        i % step ? "" : el("span", { class: "edge" }, duration(edges_s[low + i])),
      );
    const words = `Busy agents: ${told.join("; ")}`;
    const picture = el("div", { class: "bins", role: "img", "aria-label": words }, ...some.map(bin));
    const part = every > 1 ? [held(`So many are busy that one of every ${count(every)} was looked at.`)] : [];
    return el("div", {}, picture, ...part);
  }

  /** The latest rounds, of which each is told once or more. */
  class Latest {
    static most = 200;
    rounds = new Map();
    with(told) {
      for (const round of told) this.rounds.set(round.number, round);
      for (const number of this.rounds.keys()) if (this.rounds.size > Latest.most) this.rounds.delete(number);
      return [...this.rounds.values()].sort((a, b) => a.number - b.number);
    }
  }

  const hostOf = (round) => round.host ?? "all hosts";

  /** A strip of rounds for each host, on one axis; a round without an end runs until now_s. */
  function strips(rounds, now_s) {
    if (!rounds.length) return held("No round has begun.");
    const end = (round) => round.end_s ?? now_s;
    const from = Math.min(...rounds.map((round) => round.start_s));
    const to = Math.max(...rounds.map(end), from + 1e-9);
    const part = (s) => `${((100 * s) / (to - from)).toFixed(3)}%`;
    const piece = (round) =>
      el("span", {
        class: round.end_s == null ? "runs" : round.number % 2 ? "odd" : "",
        style: `left: ${part(round.start_s - from)}; width: ${part(end(round) - round.start_s)}`,
        title: `round ${round.number}: ${duration(end(round) - round.start_s)}`,
      });
    const by = new Map();
    for (const round of rounds) by.set(hostOf(round), [...(by.get(hostOf(round)) ?? []), round]);
    const strip = ([host, some]) => {
      const label = `${plural(some.length, "round")} of ${host}`;
      const pieces = el("div", { class: "strip", role: "img", "aria-label": label }, ...some.map(piece));
      return [el("span", { class: "name" }, host), pieces];
    };
    const ends = el("div", { class: "ends" }, el("span", {}, duration(from)), el("span", {}, duration(to)));
    return el("div", { class: "strips" }, ...[...by].flatMap(strip), ends);
  }

  const KNOWN = ["number", "host", "start_s", "end_s"];

  /** The same rounds for `fillTable`, the latest first: heads and lines, with whatever else is said of them. */
  function roundLines(rounds) {
    const more = Object.keys(Object.assign({}, ...rounds)).filter((name) => !KNOWN.includes(name));
    const heads = ["round", "began", "took", ...more].map((name) => [name, "number"]);
    const said = (value) => (typeof value === "number" ? count(value) : String(value ?? "–"));
    const line = (round) => [
      String(round.number),
      duration(round.start_s),
      round.end_s == null ? "it runs" : duration(round.end_s - round.start_s),
      ...more.map((name) => said(round[name])),
    ];
    return [heads, [...rounds].reverse().map(line)];
  }

  // -- what answers

  /** A slider over the seconds of a run, and a button that plays it in about 20 s: {box, set(length_s)}.
   *  show(at_s): called of every time that is chosen. */
  function slider(id, show) {
    let playing = null;
    const words = el("output");
    const chosen = () => {
      words.textContent = duration(Number(at.value));
      show(Number(at.value));
    };
    const name = { "aria-label": "Time of the run", oninput: () => later(id, chosen, 60) };
    const at = el("input", { id, type: "range", min: 0, step: "any", ...name });
    const stop = () => {
      clearInterval(playing);
      playing = null;
      play.textContent = "Play";
    };
    const tick = () => {
      at.value = Number(at.value) + Number(at.max) / 100;
      chosen();
      if (Number(at.value) >= Number(at.max)) stop();
    };
    const begin = () => {
      if (Number(at.value) >= Number(at.max)) at.value = 0;
      play.textContent = "Stop";
      playing = setInterval(tick, 200);
    };
    const play = button("Play", () => (playing === null ? begin() : stop()));
    const box = el("div", { class: "slider", hidden: true }, play, at, words);
    const set = (length_s) => {
      at.max = at.value = length_s;
      words.textContent = duration(length_s);
      box.hidden = false;
    };
    return { box, set };
  }

  /** A question before what cannot be undone: {dialog, ask(title)}; ask says whether the answer was yes. */
  function question(id, words, yes, no) {
    const title = el("h2", { id: `${id}-title` });
    const answers = el(
      "div",
      { class: "buttons" },
      button(no, () => dialog.close(no), { autofocus: true }),
      button(yes, () => dialog.close(yes), { class: "kill" }),
    );
    const dialog = el("dialog", { id, "aria-labelledby": title.id }, title, el("p", {}, words), answers);
    const ask = (asked) => {
      title.textContent = asked;
      dialog.returnValue = no;
      dialog.showModal();
      return new Promise((done) =>
        dialog.addEventListener("close", () => done(dialog.returnValue === yes), { once: true }),
      );
    };
    return { dialog, ask };
  }

  return {
    plural,
    button,
    held,
    size,
    section,
    scroll,
    number,
    text,
    Rows,
    facts,
    shares,
    states,
    Latest,
    bins,
    strips,
    roundLines,
    slider,
    question,
  };
})();
