/** Round numbers between two, about `count` of them. */
function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(i * step);
  return { step, values: found };
}

function tickText(value, step) {
  if (Math.abs(value) < step / 1e6) return "0";
  if (Math.abs(value) >= 1e6 || step < 1e-4) return minus(value.toExponential(1));
  if (Math.abs(value) >= 1e4) return minus(`${+(value / 1e3).toFixed(2)}k`);
  return minus(value.toFixed(Math.max(0, -Math.floor(Math.log10(step) + 1e-9))));
}

/** Two ends that differ, with some room beyond them. */
function widen(values, share) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const room = high > low ? share * (high - low) : Math.abs(high) * 0.1 || 1;
  return [low - room, high + room];
}

/** The place of data on a canvas: pixels of x and y, and the rectangle between the axes. */
class Frame {
  constructor(width, height, xs, ys) {
    Object.assign(this, { width, height, xs, ys, left: 52, right: width - 16, top: 36, bottom: height - 50 });
  }

  x(value) {
    return this.left + ((value - this.xs[0]) / (this.xs[1] - this.xs[0])) * (this.right - this.left);
  }

  y(value) {
    return this.bottom - ((value - this.ys[0]) / (this.ys[1] - this.ys[0])) * (this.bottom - this.top);
  }

  holds(x, y) {
    return x >= this.left - 4 && x <= this.right + 4 && y >= this.top - 4 && y <= this.bottom + 4;
  }

  /** Grid, numbers and titles. */
  axes(xTitle, yTitle) {
    const group = svg("g", { class: "axes" });
    const across = ticks(...this.xs, Math.max(4, this.width / 120));
    const up = ticks(...this.ys, this.height / 70);
    for (const value of up.values) {
      const y = this.y(value);
      group.append(
        svg("line", { class: "grid", x1: this.left, x2: this.right, y1: y, y2: y }),
        svg("text", { x: this.left - 8, y: y + 4, "text-anchor": "end" }, tickText(value, up.step)),
      );
    }
    for (const value of across.values) {
      const x = this.x(value);
      group.append(
        svg("line", { class: "tick", x1: x, x2: x, y1: this.bottom, y2: this.bottom + 4 }),
        svg("text", { x, y: this.bottom + 18, "text-anchor": "middle" }, tickText(value, across.step)),
      );
    }
    group.append(
      svg("line", { class: "tick", x1: this.left, x2: this.right, y1: this.bottom, y2: this.bottom }),
      svg("text", { class: "title", x: this.right, y: this.bottom + 39, "text-anchor": "end" }, xTitle),
      svg("text", { class: "title", x: 14, y: 22 }, yTitle),
    );
    return group;
  }

  /** A path through points `[x, y]`; a null breaks it. */
  path(points) {
    let next = "M";
    let d = "";
    for (const point of points) {
      if (point) d += `${next}${this.x(point[0]).toFixed(1)},${this.y(point[1]).toFixed(1)}`;
      next = point ? "L" : "M";
    }
    return d;
  }
}

/**
 * A picture that fills the width of its figure, drawn anew when that changes.
 *
 * `draw(canvas, width)` fills an empty canvas and returns `hover(x, y)`, which returns nodes for the tooltip and where it
 * points, or null.
 */
function chart(figure, label, draw) {
  const canvas = svg("svg", { class: "chart", role: "img", "aria-label": label });
  const tip = html("div", { class: "tip", hidden: true });
  figure.append(canvas, tip);
  let width = 0;
  let hover = () => null;
  const redraw = () => {
    if (!width) return;
    canvas.replaceChildren();
    tip.hidden = true;
    hover = draw(canvas, width);
  };
  const leave = () => {
    tip.hidden = true;
    hover(-1, -1);
  };
  const point = (event) => {
    const box = canvas.getBoundingClientRect();
    const told = hover(event.clientX - box.left, event.clientY - box.top);
    tip.hidden = !told;
    if (told) place(tip, told, width);
  };
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerdown", point);
  canvas.addEventListener("pointerleave", leave);
  const fit = () => {
    if (figure.clientWidth === width) return;
    width = figure.clientWidth;
    redraw();
  };
  new ResizeObserver(() => requestAnimationFrame(fit)).observe(figure);
  view.listeners.push(redraw);
  return redraw;
}

/** Puts the tooltip beside the point it speaks of, inside the picture. */
function place(tip, told, width) {
  tip.replaceChildren(...told.nodes);
  const beside = told.x + 14 + tip.offsetWidth <= width ? told.x + 14 : told.x - 14 - tip.offsetWidth;
  tip.style.left = `${Math.max(0, beside)}px`;
  tip.style.top = `${Math.max(0, told.y - tip.offsetHeight / 2)}px`;
}

/** A line of a tooltip: what, and how much. */
function fact(name, value, run = null) {
  return html("div", { class: "fact" }, html("span", {}, run && swatch(run), name), html("b", {}, value));
}
