"use strict";

/** A new HTML element. Strings among the children become text, never markup. */
function html(tag, attributes = {}, ...children) {
  return furnish(document.createElement(tag), attributes, children);
}

/** A new SVG element, likewise. */
function svg(tag, attributes = {}, ...children) {
  return furnish(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function furnish(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** Four digits or so, or a dash. */
function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return minus(value.toExponential(2));
  return minus(size >= 1e3 ? value.toFixed(0) : value.toFixed(3));
}

/** Two decimals, for columns in which few digits matter; or a dash. */
function short(value) {
  return value === null ? "–" : minus(value.toFixed(Math.abs(value) >= 100 ? 0 : 2));
}

/** One decimal, or a dash. */
function percent(value) {
  return value === null || value === undefined ? "–" : minus(`${(100 * value).toFixed(1)} %`);
}

function minus(text) {
  return text.replace("-", "−");
}

/** What people chose to see, and who wants to know when they choose again. */
const view = {
  hidden: new Set(),
  listeners: [],
  shows(run) {
    return !this.hidden.has(run.name);
  },
  toggle(run) {
    if (!this.hidden.delete(run.name)) this.hidden.add(run.name);
    for (const listener of this.listeners) listener();
  },
};

/** Colour and dash of a run, as classes: seven colours, then the same ones dashed. */
function look(run) {
  return `c${run.index % 7}${run.index >= 7 ? " dashed" : ""}`;
}

/** The mark of a run, a second sign beside its colour. */
function mark(run, x, y, size = 5) {
  const s = size;
  const shapes = [
    `M${-s},0a${s},${s} 0 1,0 ${2 * s},0a${s},${s} 0 1,0 ${-2 * s},0Z`,
    `M${-s},${-s}H${s}V${s}H${-s}Z`,
    `M0,${-1.2 * s}L${1.2 * s},${s}H${-1.2 * s}Z`,
    `M0,${-1.4 * s}L${1.4 * s},0L0,${1.4 * s}L${-1.4 * s},0Z`,
    `M0,${1.2 * s}L${1.2 * s},${-s}H${-1.2 * s}Z`,
  ];
  return svg("path", {
    class: `mark ${look(run)}`,
    d: shapes[run.index % shapes.length],
    transform: `translate(${x.toFixed(1)},${y.toFixed(1)})`,
  });
}

/** The mark of a run and its name, for lines of text. */
function swatch(run) {
  return svg("svg", { class: "swatch", viewBox: "-8 -8 16 16", "aria-hidden": "true" }, mark(run, 0, 0));
}
