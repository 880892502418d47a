// What may be ordered, with a dialog that says what will happen before it does.
import { get, html, put, say, show } from "./dom.js";
import { bytes, day } from "./format.js";

let status = null, token = "", ordered = null, checkpoints = [], drilled = 0;

const others = () => (status.followers || []).filter((f) => !f.active);

// Each order: when it is there, what will happen, and what is sent.
const orders = {
  switch: {
    label: "Switch…", title: "Move the data flow to another target", yes: "Move the flow",
    there: () => status.role === "primary" && others().length > 0,
    choices: () => others().map((f) => f.target),
    text: (to) => {
      const f = others().find((o) => o.target === to);
      const now = (status.followers || []).find((o) => o.active);
      return [
        `Writes go to ${to} from then on; ${now ? now.target + " is left" : "no target is left"}.`,
        f && f.hot && f.state === "streaming" ? "It is hot and in sync: nothing has to be copied." : "It does not count before it has been resynced: until then a loss of this host loses what only it has.",
        "Nothing moves back by itself.",
      ];
    },
    body: (to) => ({ to }),
  },
  "take-over": {
    label: "Take over…", title: "Take the lead over from the source, which lives", yes: "Take over",
    there: () => status.role === "secondary" && Boolean(status.source && status.source.connected),
    text: () => ["The source closes its device, hands over all that it has, and becomes a target of this host. Nothing is lost and nothing is copied.", "Applications have to connect here then. When the source cannot hand over in time, it opens its device again and stays the primary."],
    body: () => ({}),
  },
  promote: {
    label: "Promote…", title: "Make this host the primary", yes: "Promote", there: () => status.role === "secondary",
    sure: "I have made sure that the old source is down, or that nothing uses it.",
    text: () => ["A new generation begins and this host serves the device. Every other host that meets it refuses the old source.", "What the old source had and this host has not got is not here."],
    look: async () => {
      const r = await send("promote", { dry_run: true });
      const m = r.missing;
      if (!m || !m.known) return ["The source was not heard of since this agent started: what it had beyond this is not known."];
      return [m.bytes > 0 ? `${bytes(m.bytes)} of ${m.source}'s log are not here, as far as it has told.` : `Nothing that ${m.source} has told of is missing here.`];
    },
    body: () => ({}),
  },
  verify: {
    label: "Verify…", title: "Compare the device with the target's", yes: "Start",
    there: () => status.role === "primary" && !verifying(),
    text: () => [`${bytes(status.device.size_bytes)} are read on both sides while they are in use. No write waits for it, and it slows down for applications.`, "Nothing is changed: repairs are ordered on the command line."],
    body: () => ({}),
  },
  "verify-stop": {
    label: "Stop verify…", title: "Stop the verify that runs", yes: "Stop it", there: () => status.role === "primary" && verifying(),
    text: () => ["mirror-agent verify --resume goes on where it was."], body: () => ({}),
  },
  "drill-start": {
    label: "Drill…", title: "Show this host's copy at a point", yes: "Show it", ask: "At",
    there: () => !status.drill,
    choices: () => [{ value: "", text: "the newest point" }, ...checkpoints.filter((p) => p.in_window).slice(-200).reverse().map((p) => ({ value: "checkpoint:" + p.name, text: `${p.name}, ${day(p.time)}` }))],
    text: (at) => {
      const p = checkpoints.find((c) => "checkpoint:" + c.name === at);
      return [
        `The device is shown as it was ${p ? `at ${p.name} (LSN ${p.lsn})` : "a moment ago"}, by NBD and writable, at an address of its own on this host; the page says which. The mirror goes on, and its clients see nothing of it.`,
        "What is written there, and what the mirror overwrites meanwhile, goes into a scratch file beside the log, at most half of what is free there. It is thrown away at the end.",
        "It ends when it is stopped, when the scratch is full or so slow that the mirror would wait for it, and with a promotion of this host or the end of the agent.",
      ];
    },
    body: (at) => ({ at }),
  },
  "drill-stop": {
    label: "Stop drill…", title: "End the drill that runs", yes: "End it", there: () => Boolean(status.drill),
    text: () => {
      const d = status.drill;
      return [d ? `Drill ${d.id} at LSN ${d.point.lsn} ends: its clients (${d.clients.connections}) lose their device, and its scratch of ${bytes(d.scratch_bytes)} is thrown away. The mirror goes on.` : "It has ended meanwhile."];
    },
    body: () => ({ id: drilled }),
  },
  suspend: {
    label: "Suspend…", title: "Stop the data flow", yes: "Suspend", there: () => status.role === "primary" && (status.followers || []).length > 0 && status.state !== "suspended",
    text: () => ["Nothing is sent to any target until it is resumed. Writes go on, on this host alone" + (status.on_loss === "freeze" ? "; with on-loss freeze they wait." : ".")],
    body: () => ({}),
  },
  resume: {
    label: "Resume…", title: "Start the data flow again", yes: "Resume", there: () => status.role === "primary" && status.state === "suspended",
    text: () => ["Targets get what they missed, from the log or by a resync."], body: () => ({}),
  },
};

const verifying = () => Boolean(status.verify && ["running", "waiting"].includes(status.verify.state));

async function send(name, body) {
  const answer = await fetch("/v1/order/" + name, {
    method: "POST", headers: { "Content-Type": "application/json", "X-Page-Token": token }, body: JSON.stringify(body),
  });
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(said.error || "the agent answered " + answer.status);
  return said;
}

export function allow(pageToken) {
  token = pageToken;
  for (const [name, o] of Object.entries(orders)) {
    if (get("order-" + name)) continue;
    const b = html("button", { type: "button", id: "order-" + name, hidden: true }, o.label);
    b.addEventListener("click", () => ask(name));
    get("orders").append(b);
  }
}

// points are those that a drill may be at.
export function points(list) { checkpoints = list; }

export function update(now) {
  status = now;
  if (!token) return;
  show(get("orders"), Object.values(orders).some((o) => o.there()));
  for (const [name, o] of Object.entries(orders)) show(get("order-" + name), o.there());
}

async function ask(name) {
  const o = orders[name], to = get("dialog-to"), yes = get("dialog-yes");
  ordered = name;
  drilled = status.drill ? status.drill.id : 0; // the one that is shown, and no later one
  say(get("dialog-title"), o.title);
  say(yes, o.yes);
  show(get("dialog-error"), false);
  const choices = o.choices ? o.choices() : [];
  show(get("dialog-choice"), choices.length > 0);
  say(get("dialog-ask"), o.ask || "To");
  put(to, ...choices.map((c) => html("option", { value: c.value ?? c }, c.text ?? c)));
  const explain = (more = []) => put(get("dialog-text"), ...[...o.text(to.value), ...more].map((t) => html("p", {}, t)));
  to.onchange = () => explain();
  explain();
  show(get("dialog-check"), Boolean(o.sure));
  say(get("dialog-sure-text"), o.sure || "");
  get("dialog-sure").checked = false;
  get("dialog-sure").onchange = () => { yes.disabled = !get("dialog-sure").checked; };
  yes.disabled = Boolean(o.sure);
  get("dialog").showModal();
  get("dialog-no").focus();
  if (o.look) {
    try {
      explain(await o.look());
    } catch (e) {
      refused(e);
    }
  }
}

function refused(e) {
  say(get("dialog-error"), e.message);
  show(get("dialog-error"), true);
}

get("dialog-no").addEventListener("click", () => get("dialog").close());
get("dialog").addEventListener("close", () => { const b = get("order-" + ordered); if (b) b.focus(); });
get("dialog-form").addEventListener("submit", async (e) => {
  e.preventDefault();
  const yes = get("dialog-yes");
  yes.disabled = true;
  try {
    await send(ordered, orders[ordered].body(get("dialog-to").value));
    get("dialog").close();
    say(get("announcer"), orders[ordered].title + ": ordered");
  } catch (err) {
    refused(err);
  } finally {
    yes.disabled = false;
  }
});
