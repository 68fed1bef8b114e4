"use strict";

/* Runs: what follows from their spans, live or recorded. It stands on the small things of page.html.

   runs              lanes, requests, series, KV, messages
   recorded runs     Chrome traces and run folders as runs */

// -- runs: what follows from spans. A span is {rank, kind, name, start_s, end_s, bytes, peer, args}.

const EVENTS = new Set([
  "arrive",
  "admit",
  "preempt",
  "finish",
  "update",
  "keep adapter",
  "serve adapter",
  "training failed",
  "hung",
  "lost",
  "return",
  "signal",
]);
const FAILURES = new Set(["preempt", "training failed", "hung", "lost"]);
const TRANSFERS = new Set([
  "send",
  "recv",
  "move",
  "collective",
  "fetch",
  "pull",
  "store",
  "load",
  "switch",
  "wait",
]);
const TONES = {
  prefill: "prefill step",
  decode: "decode step",
  mixed: "step of both",
  training: "training",
  compute: "compute",
  transfer: "transfer",
  event: "event",
  failure: "preempted, failed",
};

/** Which resource of its rank a span takes. */
function groupOf(span) {
  if (EVENTS.has(span.kind) || (span.start_s === span.end_s && !span.peer)) return "events";
  return TRANSFERS.has(span.kind) || span.peer ? "transfer" : "compute";
}

/** Spans of one row, which do not overlap: sorted by start and by end alike. */
class Row {
  starts = [];
  ends = [];
  spans = [];
  get last_s() {
    return this.ends.length ? this.ends[this.ends.length - 1] : -Infinity;
  }
  push(span, start_s = span.start_s) {
    this.starts.push(start_s);
    this.ends.push(span.end_s);
    this.spans.push(span);
    span.row = this;
  }
  /** A span that overlaps what is there: only what is past it. */
  squeeze(span) {
    span.row = this;
    if (span.end_s >= this.last_s) this.push(span, Math.max(span.start_s, this.last_s));
  }
  /** The span at a time, or the nearest within `near` seconds. */
  at(t_s, near) {
    const i = firstAfter(this.ends, t_s - near);
    const found = [i, i + 1, i + 2].filter((j) => j < this.spans.length && this.starts[j] <= t_s + near);
    const off = (j) => Math.max(this.starts[j] - t_s, t_s - this.ends[j], 0);
    return found.length ? this.spans[found.reduce((a, b) => (off(b) < off(a) ? b : a))] : null;
  }
}

/** One rank: rows for each resource, and when any of its compute ran. */
class Lane {
  static most = { compute: 4, transfer: 6, events: 1 };
  rows = { compute: [], transfer: [], events: [] };
  busy = new Row();
  busy_s = 0;
  spans = 0;
  kinds = new Map();
  constructor(rank) {
    this.rank = rank;
  }
  /** Returns whether the lane got a row more. */
  add(span) {
    const group = groupOf(span);
    const rows = this.rows[group];
    this.spans += 1;
    this.kinds.set(span.kind, (this.kinds.get(span.kind) ?? 0) + span.end_s - span.start_s);
    if (group === "compute") this.cover(span.start_s, span.end_s);
    const row = rows.find((each) => each.last_s <= span.start_s + ROUNDING_S);
    if (row) row.push(span);
    else if (rows.length === Lane.most[group]) rows[rows.length - 1].squeeze(span);
    else {
      rows.push(new Row());
      rows[rows.length - 1].push(span);
      return true;
    }
    return false;
  }
  /** Busy time is a union: spans come in order of their end. */
  cover(start_s, end_s) {
    const { starts, ends, spans } = this.busy;
    while (ends.length && this.busy.last_s >= start_s) {
      const from_s = starts.pop();
      const to_s = ends.pop();
      spans.pop();
      this.busy_s -= to_s - from_s;
      start_s = Math.min(start_s, from_s);
      end_s = Math.max(end_s, to_s);
    }
    this.busy.push({ end_s }, start_s);
    this.busy_s += end_s - start_s;
  }
  mostly() {
    return [...this.kinds]
      .sort((a, b) => b[1] - a[1])
      .slice(0, 3)
      .map(([kind]) => kind)
      .join(", ");
  }
}

/** Values over time for a chart, times ascending and each its own. */
class Series {
  constructor(width) {
    this.t = [];
    this.ys = Array.from({ length: width }, () => []);
  }
  push(t_s, ...values) {
    const last_s = this.t[this.t.length - 1];
    this.t.push(last_s >= t_s ? last_s + ROUNDING_S : t_s);
    values.forEach((value, i) => this.ys[i].push(value));
  }
}

/** Who holds how many tokens of KV: now, and at up to `most` moments, evenly thinned. */
class Holdings {
  static most = 4000;
  held = new Map();
  times = [];
  samples = [];
  stride = 1;
  seen = 0;
  sample(t_s) {
    if (this.seen++ % this.stride) return;
    const owners = [...this.held];
    this.times.push(t_s);
    this.samples.push({ owners, total: owners.reduce((sum, [, tokens]) => sum + tokens, 0) });
    if (this.samples.length <= Holdings.most) return;
    const even = (_, i) => i % 2 === 0;
    this.samples = this.samples.filter(even);
    this.times = this.times.filter(even);
    this.stride *= 2;
  }
  at(t_s) {
    return this.samples[firstAfter(this.times, t_s) - 1];
  }
}

/** Sends with their receives: in order for each pair of ranks and tag, as Chrome traces have them. Of either
 *  end, `span.message` is {send, recv}, null while the other end has not come. */
class Messages {
  pairs = [];
  ends = [];
  longest_s = 0;
  open = new Map();
  add(span) {
    const sends = span.kind === "send";
    if ((!sends && span.kind !== "recv") || span.message !== undefined) return;
    const [from, to] = sends ? [span.rank, span.peer] : [span.peer, span.rank];
    const key = JSON.stringify([from, to, span.args?.tag ?? 0]);
    if (!this.open.has(key)) this.open.set(key, []);
    const open = this.open.get(key);
    span.message = null;
    if (!open.length || open[0].kind === span.kind) open.push(span);
    else this.join(...(sends ? [span, open.shift()] : [open.shift(), span]));
  }
  join(send, recv) {
    let i = this.ends.length;
    while (i && this.ends[i - 1] > recv.end_s) i -= 1;
    this.ends.splice(i, 0, recv.end_s);
    this.pairs.splice(i, 0, { send, recv });
    send.message = recv.message = this.pairs[i];
    this.longest_s = Math.max(this.longest_s, recv.end_s - send.start_s);
  }
  /** Those under way at some time between. */
  within(from_s, to_s) {
    const low = firstAfter(this.ends, from_s);
    const high = firstAfter(this.ends, to_s + this.longest_s, low);
    return this.pairs.slice(low, high).filter(({ send }) => send.start_s < to_s);
  }
  /** The same of these spans only; one whose other end is not among them has none. */
  among(spans) {
    const made = new Messages();
    for (const { send, recv } of this.pairs) {
      if (spans.has(send) && spans.has(recv)) made.join(send, recv);
      else send.message = recv.message = null;
    }
    for (const [key, open] of this.open)
      made.open.set(
        key,
        open.filter((span) => spans.has(span)),
      );
    return made;
  }
}

/** One run, real or simulated: its spans in order of their end, and everything shown of them. */
class Run {
  spans = [];
  since_s = Infinity;
  origin_s = Infinity;
  end_s = -Infinity;
  lanes = new Map();
  requests = new Map();
  queue = new Series(2);
  ttft = new Series(1);
  itl = new Series(2);
  kv = new Holdings();
  messages = new Messages();
  gauges = new Map();
  peak = { running: 0, waiting: 0, kv: 0 };
  gaps = [];
  numSteps = 0;
  numPreempted = 0;
  tokens = 0;
  shape = 0;
  tones = new Set();
  /** whole: its spans are all there were; else some requests began before them. */
  constructor(label, about = {}, whole = true) {
    Object.assign(this, { label, about, whole });
    this.blockSize = about.block_size ?? 1;
    this.kvUnit = about.block_size ? "blocks" : "tokens";
  }
  /** From its beginning, which is where its time axis begins; and of what is kept. */
  get length_s() {
    return this.spans.length ? this.end_s - this.origin_s : 0;
  }
  get kept_s() {
    return this.spans.length ? this.end_s - this.since_s : 0;
  }

  add(span) {
    if (span.kind === "counter") return;
    this.spans.push(span);
    this.since_s = Math.min(this.since_s, span.start_s);
    this.origin_s = Math.min(this.origin_s, span.start_s);
    this.end_s = Math.max(this.end_s, span.end_s);
    if (!this.lanes.has(span.rank)) this.lanes.set(span.rank, new Lane(span.rank));
    this.take(span);
    this.messages.add(span);
    this.tones.add(span.tone);
    if (this.lanes.get(span.rank).add(span)) this.shape += 1;
  }
  take(span) {
    if (span.kind === "step" && span.args?.chunks) this.step(span);
    else
      span.tone = FAILURES.has(span.kind) ? "failure" : ({ events: "event" }[groupOf(span)] ?? groupOf(span));
    if (span.kind === "arrive")
      Object.assign(this.request(span.name, span.start_s), {
        prompt: span.args?.prompt ?? 0,
        partial: false,
      });
    else if (span.kind === "preempt") {
      this.request(span.name, span.start_s).preempted += 1;
      this.numPreempted += 1;
      this.kv.held.delete(span.name);
    } else if (span.kind === "finish") {
      Object.assign(this.request(span.name, span.start_s), { state: span.args?.reason ?? "finished" });
      this.kv.held.delete(span.name);
    }
  }
  request(id, arrived_s) {
    let found = this.requests.get(id);
    if (!found) {
      found = {
        id,
        run: this,
        arrived_s,
        prompt: null,
        output: 0,
        preempted: 0,
        state: "open",
        partial: !this.whole,
        started_s: null,
        first_s: null,
        token_s: null,
        end_s: null,
      };
      this.requests.set(id, found);
    }
    return found;
  }

  step(span) {
    const { chunks, slices, running = 0, waiting = 0, kv_usage = 0 } = span.args;
    const gaps = [];
    let prefills = 0;
    for (const chunk of chunks) prefills += this.chunk(span, chunk, gaps);
    span.tone = slices ? "training" : !prefills ? "decode" : prefills === chunks.length ? "prefill" : "mixed";
    this.numSteps += 1;
    this.gauges.set(span.rank, [running, waiting]);
    const [all, queued] = [...this.gauges.values()].reduce(([a, b], [c, d]) => [a + c, b + d], [0, 0]);
    this.queue.push(span.end_s, all, queued);
    this.peak.running = Math.max(this.peak.running, all);
    this.peak.waiting = Math.max(this.peak.waiting, queued);
    this.peak.kv = Math.max(this.peak.kv, kv_usage);
    if (gaps.length) this.itl.push(span.end_s, Math.max(...gaps), percentile(gaps, 0.5));
    this.kv.sample(span.end_s);
  }
  /** One request's part of a step; returns whether it computes its prompt. */
  chunk(span, [number, start, size, , emitted], gaps) {
    const request = this.request(String(number), span.start_s);
    request.prompt ??= start + size;
    request.started_s ??= span.start_s;
    request.end_s = Math.max(request.end_s ?? 0, span.end_s);
    if (request.state === "open") this.kv.held.set(request.id, start + size);
    if (emitted && request.token_s !== null) gaps.push(span.end_s - request.token_s);
    for (let i = 0; i < emitted; i++) this.token(request, span.end_s);
    return start < request.prompt;
  }
  token(request, at_s) {
    this.tokens += 1;
    request.output += 1;
    if (request.first_s === null) {
      request.first_s = at_s;
      this.ttft.push(at_s, at_s - request.arrived_s);
    } else this.gaps.push(at_s - request.token_s);
    request.token_s = at_s;
  }

  /** The same run with its latest spans only; of requests that began before them the figures stay. */
  latest(most) {
    const made = new Run(this.label, this.about, false);
    const kept = this.spans.slice(-most);
    made.messages = this.messages.among(new Set(kept));
    for (const span of kept) made.add(span);
    for (const [id, before] of this.requests) {
      const now = made.requests.get(id);
      if (now ? before.arrived_s < made.since_s : before.state === "open")
        made.requests.set(id, { ...before, run: made, partial: true });
    }
    made.origin_s = this.origin_s;
    return made;
  }
}

const latency = (r) => (r.end_s === null ? null : r.end_s - r.arrived_s);
const queued = (r) => (r.started_s === null ? null : r.started_s - r.arrived_s);
const toFirst = (r) => (r.first_s === null ? null : r.first_s - r.arrived_s);
const perToken = (r) => (r.output > 1 ? (r.token_s - r.first_s) / (r.output - 1) : null);

// -- recorded runs

/** Of a run folder: what is read, the first that is there. A run that was killed has no second one. */
const RECORDS = ["events.jsonl", "trace.json"];

/** The runs of one file, or of the files of a run folder and of folders in it. */
async function readRuns(files) {
  if (files.length === 1) return readRun(files[0]);
  const depth = (file) => (file.webkitRelativePath ?? "").split("/").length;
  for (const name of RECORDS) {
    const found = files.filter((file) => file.name === name);
    const top = Math.min(...found.map(depth));
    const [file, ...more] = found.filter((each) => depth(each) === top);
    if (more.length) throw new Error(`${1 + more.length} runs are in it: open one of them`);
    if (file) return readRun(file);
  }
  throw new Error(`${RECORDS.join(" or ")} is not in it`);
}

const readRun = async (file) =>
  file.name.endsWith(".jsonl") ? [await readEvents(file)] : readTrace(JSON.parse(await file.text()));

/** The run of an events.jsonl: a header, then spans among what else was recorded, in the order told. */
async function readEvents(file) {
  let run = null;
  for await (const line of wholeLines(file)) {
    const told = JSON.parse(line);
    if (!run) {
      if (typeof told.label !== "string") throw new Error("its first line is no header");
      run = new Run(told.label, told.about ?? {});
    } else if (told.span) run.add(spanOf(told.span));
  }
  if (!run?.spans.length) throw new Error("no spans in it");
  return run;
}

function spanOf([rank, kind, name, start_s, end_s, bytes, peer, args]) {
  if (!Number.isFinite(start_s) || !Number.isFinite(end_s)) throw new Error("a span of it has no time");
  return { rank, kind, name, start_s, end_s, bytes, peer, args };
}

/** The lines of a file that were written to their end: the last one of a run that was killed may not be. */
async function* wholeLines(file) {
  const reader = file.stream().pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const lines = (rest + part.value).split("\n");
    rest = lines.pop();
    yield* lines;
  }
}

/** Runs of a Chrome trace, as `--trace` writes it: a process is a run, a thread a rank, times in µs. */
function readTrace(data) {
  const events = Array.isArray(data) ? data : data?.traceEvents;
  if (!Array.isArray(events)) throw new Error("no traceEvents in it");
  const names = new Map();
  const about = new Map();
  for (const e of events) {
    if (e.ph !== "M") continue;
    if (e.name === "about") about.set(e.pid, e.args);
    else names.set(`${e.name} ${e.pid} ${e.tid ?? 0}`, String(e.args?.rank ?? e.args?.name));
  }
  const found = new Map();
  for (const e of events) {
    if (e.ph !== "X" && e.ph !== "i") continue;
    if (!found.has(e.pid)) found.set(e.pid, []);
    found.get(e.pid).push(readSpan(e, names.get(`thread_name ${e.pid} ${e.tid ?? 0}`)));
  }
  if (!found.size) throw new Error("no spans in it");
  return [...found].map(([pid, spans]) => {
    const run = new Run(names.get(`process_name ${pid} 0`) ?? String(pid), about.get(pid));
    const round = (s) => Math.round(s * 1e9);
    spans.sort((a, b) => round(a.end_s) - round(b.end_s) || (a.end_s > a.start_s) - (b.end_s > b.start_s));
    for (const span of spans) run.add(span);
    return run;
  });
}

function readSpan(e, rank) {
  const { bytes = 0, peer = "", ...args } = e.args ?? {};
  const start_s = e.ts / 1e6;
  if (!Number.isFinite(start_s)) throw new Error("a span of it has no time");
  const end_s = start_s + (e.dur ?? 0) / 1e6;
  return {
    rank: rank ?? String(e.tid ?? 0),
    kind: String(e.cat ?? ""),
    name: String(e.name),
    start_s,
    end_s,
    bytes,
    peer,
    args,
  };
}
