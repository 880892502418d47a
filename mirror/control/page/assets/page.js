// The page: takes the stream, keeps what the charts need, and shows all of it.
import { chart, kinds, ring } from "./charts.js";
import { facts, get, html, put, say, show, svg } from "./dom.js";
import { bytes, clock, count, day, level, rtt, seconds } from "./format.js";
import { allow, points, update } from "./orders.js";
import { hosts, shares, topology } from "./topology.js";

const keptEvents = 300, keptSamples = 900, staleAfter = 4000;
let view = null, before = null, history = [], checkpoints = [], lastID = "", heard = 0, source = null, pause = 1000;

// rates gives a path's bytes in a second, by what the last two views say.
function rates(p) {
  if (!before) return 0;
  const old = before.paths.get(p.local + ">" + p.remote);
  return old === undefined ? 0 : Math.max(0, (p.bytes_sent + p.bytes_received - old) / before.seconds);
}

function remember(fresh) {
  const st = fresh.status;
  st.alarms ||= [];
  st.followers ||= [];
  const all = (v) => new Map([...(v.status.followers || []).flatMap((f) => f.paths), ...((v.status.source || {}).paths || [])].map((p) => [p.local + ">" + p.remote, p.bytes_sent + p.bytes_received]));
  const gap = view ? (Date.parse(fresh.now) - Date.parse(view.now)) / 1000 : 0;
  if (gap > 0.4) before = { paths: all(view), seconds: gap };
  const lag = {};
  for (const f of fresh.status.followers || []) if (f.active || f.hot) lag[f.target] = { b: f.lag_bytes, s: f.rpo_seconds };
  const s = fresh.status.source;
  if (s && s.connected) lag[s.peer] = { b: Math.max(0, s.source_head - s.durable), s: 0 };
  const t = Date.parse(fresh.now);
  if (history.length === 0 || t > history[history.length - 1].t) history.push({ t, lag });
  if (history.length > keptSamples) history.shift();
  view = fresh;
}

function showState(s) {
  document.title = `${s.name}: ${s.state}`;
  say(get("name"), s.name);
  say(get("facts"), `${s.role} on ${s.node || "this host"}, mode ${s.mode}, generation ${s.generation}`);
  const word = get("state-word");
  if (word.textContent !== s.state || word.dataset.level !== stateLevel(s)) {
    if (word.textContent !== "…") announce(`${s.name} is ${s.state}${s.reason ? ": " + s.reason : ""}`);
    word.textContent = s.state;
    word.dataset.level = stateLevel(s);
  }
  say(get("state-reason"), s.reason);
  say(get("state-next"), s.next_step);
  get("state-next").className = "next";
  show(get("state-next"), Boolean(s.next_step));
  say(get("state-since"), "since " + day(s.since));
}

const stateLevel = (s) => (level(s.state) === "good" && s.alarms.length > 0 ? "warn" : level(s.state));

let announced = new Set();
function showAlarms(s) {
  const now = new Set(s.alarms.map((a) => a.name + a.reason));
  const fresh = s.alarms.filter((a) => !announced.has(a.name + a.reason) && a.reason !== s.reason);
  if (fresh.length > 0) announce("Alarm: " + fresh.map((a) => a.reason).join("; "));
  if (announced.size > 0 && now.size === 0) announce("No alarms any more");
  announced = now;
  show(get("no-alarms"), s.alarms.length === 0);
  put(get("alarm-list"), ...s.alarms.map((a) => html("li", {},
    html("p", {}, html("strong", {}, a.name), " ", html("span", { class: "quiet" }, "since " + clock(a.since))),
    html("p", {}, a.reason), a.next_step ? html("p", { class: "next" }, a.next_step) : null)));
}

function announce(text) { say(get("announcer"), text); }

const widthOf = (e) => Math.max(280, Math.floor(e.clientWidth || 600));

function showTopology(s) {
  const room = get("topology");
  put(room, topology(s, rates, widthOf(room)));
  const rows = hosts(s).others.flatMap((o) => {
    const share = shares(o.paths, rates);
    return o.paths.map((p, i) => html("tr", {},
      html("th", { scope: "row" }, o.title), html("td", {}, String(p.id)), html("td", {}, `${p.local || "?"} → ${p.remote}`),
      html("td", {}, p.state + (p.reason ? ": " + p.reason : "")), html("td", {}, rtt(p.rtt_us)), html("td", {}, bytes(rates(p)) + "/s"), html("td", {}, Math.round(share[i] * 100) + " %")));
  });
  put(get("paths"), ...rows);
}

function showCharts(s) {
  const now = Date.parse(view.now);
  const names = [...new Set(history.flatMap((h) => Object.keys(h.lag)))].slice(0, 8);
  const series = (k) => names.map((name) => ({ name, points: history.filter((h) => h.lag[name]).map((h) => [h.t, h.lag[name][k]]) }));
  const rpo = get("rpo-chart"), lag = get("lag-chart");
  put(rpo, chart(s.role === "primary" ? series("s") : [], now, widthOf(rpo), seconds, "RPO", 0.5, false));
  put(lag, chart(series("b"), now, widthOf(lag), bytes, "Lag", 1 << 20, true));
  say(get("rpo-caption"), s.role === "primary" ? "RPO, age of the oldest write that a target lacks" : "RPO is known on the primary");
  put(get("legend"), ...names.map((name, i) => html("li", {},
    svg("svg", { viewBox: "0 0 32 10", "aria-hidden": "true" }, svg("line", { class: "series s" + (i % kinds), x1: 0, x2: 32, y1: 5, y2: 5 })), name)));
}

function showLog(s) {
  const l = s.log, rest = l.size_bytes - (l.head - l.tail);
  put(get("ring"), ring(l, checkpoints));
  facts(get("log-facts"), [
    ["History", bytes(l.applied - l.tail) + " applied, kept for targets that were away", "kept"],
    ["Not applied", bytes(l.head - l.applied) + (l.unapplied_seconds > 0 ? ", " + seconds(l.unapplied_seconds) + " old" : ""), "waits"],
    ["Free", bytes(rest), "free"],
    ["Written", bytes(l.write_bytes_per_second) + "/s" + (l.full_in_seconds !== undefined ? `; full in ${seconds(l.full_in_seconds)} if nothing more were applied` : "")],
    ["fdatasync", `${seconds(l.fdatasync_us.p50 / 1e6)} p50, ${seconds(l.fdatasync_us.p99 / 1e6)} p99`],
    ["Head", "LSN " + l.head],
  ]);
}

function showDevice(s) {
  const v = s.verify, n = s.nbd, d = s.drill;
  facts(get("device-facts"), [
    ["Device", `${s.device.path}, ${bytes(s.device.size_bytes)}`],
    ["Served at", n.address ? n.address + (n.tls ? ", TLS" : "") : "nowhere now"],
    ["Clients", count(n.connections)],
    ["Writes", `${count(n.writes)}, ${bytes(n.written_bytes)}`],
    ["Reads", `${count(n.reads)}, ${bytes(n.read_bytes)}`],
    ["Flushes", count(n.flushes)],
    s.network && s.network.bandwidth && s.network.bandwidth !== "none" ? ["Bandwidth", s.network.bandwidth] : null,
    v ? ["Verify", `${v.state}${v.total_bytes > 0 ? `, ${bytes(v.done_bytes)} of ${bytes(v.total_bytes)}` : ""}, ${v.different_bytes > 0 ? bytes(v.different_bytes) + " differ" : "no difference"}`] : ["Verify", "none yet"],
    d ? ["Drill", `${d.id}${d.label ? " " + d.label : ""} at LSN ${d.point.lsn}${d.point.time && !d.point.time.startsWith("0001") ? ", " + day(d.point.time) : ""}`] : null,
    d ? ["Shown at", d.nbd + (d.nbd_tls ? ", TLS" : "")] : null,
    d ? ["Its clients", `${count(d.clients.connections)}, ${bytes(d.clients.written_bytes)} written; scratch ${bytes(d.scratch_bytes)} of ${bytes(d.scratch_limit_bytes)}`] : null,
  ]);
}

function showCheckpoints() {
  show(get("no-checkpoints"), checkpoints.length === 0);
  put(get("checkpoints"), ...checkpoints.slice(-100).reverse().map((p) => html("li", {},
    html("b", {}, p.name), html("time", { datetime: p.time }, day(p.time)), html("span", { class: "quiet" }, "LSN " + p.lsn))));
}

function addEvent(e) {
  const list = get("events");
  list.prepend(html("li", {}, html("time", { datetime: e.time }, clock(e.time)), html("b", {}, e.kind), html("span", {}, (e.target && !e.text.includes(e.target) ? e.target + (e.path ? ", path " + e.path : "") + ": " : "") + e.text)));
  while (list.childElementCount > keptEvents) list.lastElementChild.remove();
  if (e.kind.includes("checkpoint")) askCheckpoints();
}

async function askCheckpoints() {
  try {
    const answer = await fetch("/v1/checkpoints");
    if (!answer.ok) return;
    checkpoints = await answer.json();
    points(checkpoints);
    showCheckpoints();
    if (view) showLog(view.status);
  } catch { /* the stream tells that the agent is away */ }
}

function draw() {
  const s = view.status;
  showState(s);
  showAlarms(s);
  showTopology(s);
  showCharts(s);
  showLog(s);
  showDevice(s);
  update(s);
}

function connection(word, kind) {
  say(get("link"), word);
  get("link").dataset.level = kind;
  show(get("stale"), kind === "bad");
}

// listen opens the stream. A browser takes it up again by itself, with the last id, unless the answer was a refusal.
function listen() {
  source = new EventSource("/v1/stream" + (lastID ? "?after=" + encodeURIComponent(lastID) : ""));
  source.addEventListener("hello", (m) => {
    const h = JSON.parse(m.data);
    if (lastID && !lastID.startsWith(h.run + "-")) get("events").replaceChildren(); // another run of the agent counts anew
    if (history.length === 0) history = h.history;
    if (h.control) allow(h.token);
    pause = 1000;
    askCheckpoints();
  });
  source.addEventListener("happened", (m) => { lastID = m.lastEventId; addEvent(JSON.parse(m.data)); });
  source.addEventListener("missed", (m) => {
    say(get("missed"), `${JSON.parse(m.data).count} events of the time without a connection are not kept any more.`);
    show(get("missed"), true);
  });
  source.addEventListener("status", (m) => { heard = Date.now(); remember(JSON.parse(m.data)); draw(); connection("live", "good"); });
  source.onerror = () => {
    if (source.readyState !== EventSource.CLOSED) return;
    source.close();
    fetch("/v1/checkpoints").then((a) => { if (a.status === 401) location.reload(); }).catch(() => {});
    setTimeout(listen, pause);
    pause = Math.min(pause * 2, 15000);
  };
}

setInterval(() => {
  if (heard && Date.now() - heard > staleAfter && get("link").dataset.level !== "bad") {
    connection("no answer", "bad");
    announce("The agent does not answer");
  }
}, 500);
setInterval(askCheckpoints, 60000);
let resizing = 0;
addEventListener("resize", () => { clearTimeout(resizing); resizing = setTimeout(() => view && draw(), 100); });
listen();
