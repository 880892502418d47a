// Lines over time, and the log as a ring.
import { svg } from "./dom.js";
import { bytes, clock } from "./format.js";

export const kinds = 4; // of lines, told apart by colour and by dashes

// nice rounds a scale's end up to something that can be divided.
function nice(v, binary) {
  if (!(v > 0)) return 1;
  const base = binary ? 2 ** Math.floor(Math.log2(v)) : 10 ** Math.floor(Math.log10(v));
  return base * (binary ? [1, 1.5, 2] : [1, 2, 5, 10]).find((m) => m * base >= v);
}

// chart draws series [{name, points: [[ms, value], …]}] of the last minutes, as many as there are, up to a quarter of an hour.
export function chart(series, now, width, words, label, least, binary) {
  const height = 170, left = 62, bottom = 24, top = 10;
  const oldest = Math.min(now, ...series.map((s) => (s.points.length ? s.points[0][0] : now)));
  const minutes = [2, 5, 15].find((m) => now - oldest <= m * 60000) || 15, span = minutes * 60000;
  const most = nice(Math.max(least, ...series.flatMap((s) => s.points.map((p) => p[1]))), binary);
  const x = (t) => left + (width - left - 8) * (1 - (now - t) / span);
  const y = (v) => top + (height - top - bottom) * (1 - v / most);
  const marks = [];
  for (const part of [0, 0.5, 1]) {
    marks.push(svg("line", { class: part === 0 ? "axis" : "grid", x1: left, x2: width - 8, y1: y(most * part), y2: y(most * part) }),
      svg("text", { class: "quiet", x: left - 8, y: y(most * part) + 4, "text-anchor": "end" }, words(most * part)));
  }
  for (const part of width < 420 ? [1, 0] : [1, 0.5, 0]) {
    marks.push(svg("text", { class: "quiet", x: x(now - part * span), y: height - 6, "text-anchor": part === 0 ? "end" : part === 1 ? "start" : "middle" },
      part === 0 ? clock(now) : "−" + part * minutes + " min"));
  }
  series.forEach((s, i) => {
    let d = "", last = 0;
    for (const [t, v] of s.points) {
      if (t < now - span) continue;
      d += (d !== "" && t - last < 10000 ? "L" : "M") + x(t).toFixed(1) + " " + y(v).toFixed(1);
      last = t;
    }
    if (d) marks.push(svg("path", { class: "series s" + (i % kinds), d }));
  });
  const latest = series.map((s) => `${s.name} ${s.points.length ? words(s.points[s.points.length - 1][1]) : "unknown"}`).join(", ");
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${label}: now ${latest || "no target"}` }, ...marks);
}

// ring draws the log: history that is kept, what waits to be applied, what is free; and checkpoints where they lie.
export function ring(log, checkpoints) {
  const size = log.size_bytes, r = 80, c = 110;
  const at = (lsn) => ((lsn % size) / size) * 2 * Math.PI - Math.PI / 2;
  const point = (a, radius) => `${(c + radius * Math.cos(a)).toFixed(2)} ${(c + radius * Math.sin(a)).toFixed(2)}`;
  const arc = (from, to, kind) => {
    const part = (to - from) / size;
    if (!(part > 0.0005)) return null;
    if (part > 0.9995) return svg("circle", { class: "arc " + kind, cx: c, cy: c, r });
    const a = at(from), b = a + part * 2 * Math.PI;
    return svg("path", { class: "arc " + kind, d: `M${point(a, r)}A${r} ${r} 0 ${part > 0.5 ? 1 : 0} 1 ${point(b, r)}` });
  };
  const used = size > 0 ? (log.head - log.tail) / size : 0, waits = size > 0 ? (log.head - log.applied) / size : 0;
  const marks = [svg("circle", { class: "arc free", cx: c, cy: c, r })];
  if (size > 0) {
    marks.push(arc(log.tail, log.applied, "kept"), arc(log.applied, log.head, "waits"));
    for (const p of checkpoints.filter((p) => p.lsn >= log.tail && p.lsn <= log.head)) {
      const a = at(p.lsn);
      const [x1, y1] = point(a, r - 15).split(" "), [x2, y2] = point(a, r + 15).split(" ");
      marks.push(svg("line", { class: "mark", x1, y1, x2, y2 }, svg("title", {}, p.name)));
    }
    const a = at(log.head);
    const [x1, y1] = point(a, r - 12).split(" "), [x2, y2] = point(a, r + 12).split(" ");
    marks.push(svg("line", { class: "axis", x1, y1, x2, y2, "stroke-width": 2 }));
  }
  marks.push(svg("text", { class: "strong", x: c, y: c - 2, "text-anchor": "middle" }, Math.round(used * 100) + " % used"),
    svg("text", { class: "quiet", x: c, y: c + 18, "text-anchor": "middle" }, "of " + bytes(size)));
  return svg("svg", { viewBox: `0 0 ${2 * c} ${2 * c}`, role: "img", "aria-label": `Log of ${bytes(size)}: ${Math.round(used * 100)} percent used, ${Math.round(waits * 100)} percent not applied yet` }, ...marks);
}
