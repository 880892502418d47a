// The picture of hosts and paths. What it shows stands in the table below it too, so it is one image with one description.
import { svg } from "./dom.js";
import { bytes, level, rtt, seconds } from "./format.js";

const hostWidth = 230, lineHeight = 19;

// hosts gives this host and the others, each with its paths.
export function hosts(status) {
  const here = { here: true, title: status.node || "this host", lines: [[status.role + ", " + status.state, level(status.state)], [bytes(status.device.size_bytes) + " device", "quiet"]] };
  if (status.role === "primary") {
    here.lines.push([status.nbd.address ? status.nbd.connections + " client" + (status.nbd.connections === 1 ? "" : "s") : "not served", "quiet"]);
  }
  const others = (status.followers || []).map((f) => ({
    title: f.target, paths: f.paths || [], active: f.active, off: !f.active && !f.hot,
    lines: [
      [f.kind + (f.hot ? ", hot" : "") + (f.active ? ", active" : ""), "quiet"],
      [f.state, level(f.state)],
      [f.resync ? bytes(f.resync.done_bytes) + " of " + bytes(f.resync.total_bytes) + " copied" :
        f.active || f.hot ? "RPO " + seconds(f.rpo_seconds) + ", " + bytes(f.lag_bytes) + " behind" :
        f.dirty_bytes > 0 ? bytes(f.dirty_bytes) + " to resync" : "", "quiet"],
    ],
  }));
  const s = status.source;
  if (status.role !== "primary" && s) {
    others.unshift({
      title: s.peer || "no source", paths: s.paths || [], active: true, source: true, off: !s.connected,
      lines: [["source", "quiet"], [s.connected ? "connected" : "not connected", s.connected ? "good" : "bad"]],
    });
  }
  return { here, others };
}

// share is the part of a host's load that a path carries: of the last second, or of all when nothing flows.
export function shares(paths, rates) {
  const now = paths.map((p) => rates(p));
  const sum = now.reduce((a, b) => a + b, 0);
  if (sum > 0) return now.map((v) => v / sum);
  const all = paths.map((p) => p.bytes_sent + p.bytes_received);
  const total = all.reduce((a, b) => a + b, 0);
  return all.map((v) => (total > 0 ? v / total : 0));
}

function box(host, x, y, width) {
  const lines = host.lines.filter(([text]) => text);
  const height = 20 + (lines.length + 1) * lineHeight;
  const clip = (text) => (text.length > 30 ? text.slice(0, 29) + "…" : text);
  return {
    x, y, width, height,
    mark: svg("g", {},
      svg("rect", { class: "host" + (host.here ? " here" : "") + (host.off ? " off" : ""), x, y, width, height, rx: 8 }),
      svg("text", { class: "strong", x: x + 12, y: y + 24 }, clip(host.title)),
      ...lines.map(([text, kind], i) => svg("text", { class: kind, x: x + 12, y: y + 24 + (i + 1) * lineHeight }, clip(text)))),
  };
}

const words = (p, share, rate) => "path " + p.id + "  " + p.state + "  " + rtt(p.rtt_us) + (p.state === "active" ? "  " + bytes(rate) + "/s  " + Math.round(share * 100) + " %" : "");

function line(p, share, rate, x1, y1, x2, y2, text) {
  const kind = level(p.state);
  const d = x1 === x2 || y1 === y2 ? `M${x1} ${y1}L${x2} ${y2}` : `M${x1} ${y1}C${(x1 + x2) / 2} ${y1} ${(x1 + x2) / 2} ${y2} ${x2} ${y2}`;
  return [
    svg("path", { class: "path " + kind, d, "stroke-width": kind === "good" ? (2 + 8 * share).toFixed(1) : 2.5 }),
    kind === "good" && p.state === "active" && rate > 0 ? svg("path", { class: "flow", d }) : null,
    svg("text", { class: kind === "good" ? "quiet" : kind, x: text.x, y: text.y, "text-anchor": text.anchor || "middle" }, words(p, share, rate)),
  ];
}

export function topology(status, rates, width) {
  const { here, others } = hosts(status);
  return width < 640 ? narrow(here, others, rates, width) : wide(here, others, rates, width);
}

function describe(here, others) {
  const parts = others.map((o) => `${o.source ? "from" : "to"} ${o.title}: ${o.lines.map((l) => l[0]).filter(Boolean).join(", ")}; ${o.paths.length === 0 ? "no path" : o.paths.map((p) => `path ${p.id} ${p.state}`).join(", ")}`);
  return `${here.title}, ${here.lines[0][0]}. ${parts.join(". ")}`;
}

function frame(width, height, here, others, marks) {
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": describe(here, others) }, ...marks);
}

function wide(here, others, rates, width) {
  const marks = [], gap = 26, pathGap = 30;
  const right = width - hostWidth - 4;
  let y = 8;
  const placed = others.map((o) => {
    const b = box(o, right, y, hostWidth);
    const needed = Math.max(b.height, o.paths.length * pathGap + 6);
    y += needed + gap;
    return { o, b, needed };
  });
  const total = Math.max(y - gap, 100);
  const probe = box(here, 4, 0, hostWidth);
  const own = box(here, 4, Math.max(8, (total - probe.height) / 2), hostWidth);
  const all = others.reduce((n, o) => n + o.paths.length, 0);
  let used = 0;
  for (const { o, b, needed } of placed) {
    const share = shares(o.paths, rates);
    o.paths.forEach((p, i) => {
      const y1 = own.y + own.height * ((used + 0.5) / Math.max(all, 1));
      const y2 = b.y + Math.min(needed, o.paths.length * pathGap + 6) * ((i + 0.5) / o.paths.length);
      used++;
      marks.push(...line(p, share[i], rates(p), own.x + own.width, y1, b.x, y2, { x: b.x - 12, y: y2 - 9, anchor: "end" }));
    });
    if (o.paths.length === 0) {
      marks.push(svg("text", { class: "quiet", x: b.x - 12, y: b.y + b.height / 2 + 4, "text-anchor": "end" }, "no connection"));
    }
    marks.push(b.mark);
  }
  marks.push(own.mark);
  return frame(width, Math.max(total, own.y + own.height) + 6, here, others, marks);
}

function narrow(here, others, rates, width) {
  const own = box(here, 2, 4, width - 4);
  const marks = [own.mark];
  let y = own.y + own.height;
  for (const o of others) {
    const share = shares(o.paths, rates);
    const spread = Math.max(o.paths.length, 1) * 22 + 14;
    o.paths.forEach((p, i) => {
      const x = 18 + i * 14;
      marks.push(...line(p, share[i], rates(p), x, y, x, y + spread, { x: 18 + o.paths.length * 14 + 6, y: y + 20 + i * 22, anchor: "start" }));
    });
    if (o.paths.length === 0) marks.push(svg("text", { class: "quiet", x: 18, y: y + 24 }, "no connection"));
    const b = box(o, 2, y + spread, width - 4);
    marks.push(b.mark);
    y = b.y + b.height;
  }
  return frame(width, y + 6, here, others, marks);
}
