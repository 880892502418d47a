// The only file that makes elements. Data becomes text here, never markup.
const svgSpace = "http://www.w3.org/2000/svg";

function fill(e, attributes, children) {
  for (const [k, v] of Object.entries(attributes)) {
    if (v !== undefined && v !== null && v !== false) e.setAttribute(k, v === true ? "" : String(v));
  }
  e.append(...children.filter((c) => c !== null && c !== undefined));
  return e;
}

export const html = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(svgSpace, tag), attributes, children);
export const get = (id) => document.getElementById(id);

// say sets a text only when it is another one: what did not change is not read aloud again, and keeps its selection.
export function say(e, text) {
  if (e.textContent !== text) e.textContent = text;
}

export function show(e, yes) {
  if (e.hidden === yes) e.hidden = !yes;
}

// put replaces what is in e, unless it is the same.
export function put(e, ...children) {
  const fresh = document.createElement("div");
  fresh.append(...children);
  if (fresh.childNodes.length === e.childNodes.length && [...fresh.childNodes].every((c, i) => c.isEqualNode(e.childNodes[i]))) return;
  e.replaceChildren(...fresh.childNodes);
}

export function facts(dl, list) {
  put(dl, ...list.filter(Boolean).flatMap(([k, v, mark]) => [
    html("dt", {}, mark ? html("span", { class: "swatch " + mark }) : null, k), html("dd", {}, v),
  ]));
}
