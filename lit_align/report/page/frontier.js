const AT_REFERENCE = 1e-3; // nats; a run so near is the reference itself

/** The reward-KL frontier, and the runs under it. */
function frontierFigure(data) {
  const figure = html("figure", { id: "frontier" });
  const { reference, frontier } = data.report;
  const runs = data.runs.filter((run) => run.result.kl !== null && run.result.gold !== null);
  const curve = [[0, reference.gold], ...frontier.map((point) => [point.kl, point.gold])];
  const right = Math.max(1, ...runs.map((run) => 1.3 * run.result.kl));
  curve.push([Math.max(right, curve[curve.length - 1][0]), curve[curve.length - 1][1]]);
  const inside = curve.filter(([kl]) => kl <= right).map(([, gold]) => gold);
  const golds = widen([reference.gold, ...inside, ...runs.map((run) => run.result.gold)], 0.16);
  chart(figure, "Expected gold score against KL from the reference, with the exact frontier", (canvas, width) => {
    const frame = new Frame(width, Math.min(460, Math.max(300, 0.55 * width)), [0, right], golds);
    canvas.setAttribute("height", frame.height);
    canvas.append(frame.axes("KL from the reference, nats", "expected gold score"), frontierCurve(frame, curve));
    const shown = runs.filter((run) => view.shows(run) && run.result.kl > AT_REFERENCE);
    for (const run of shown) canvas.append(distance(frame, run));
    canvas.append(referenceMark(frame, reference, runs));
    for (const run of shown) canvas.append(mark(run, frame.x(run.result.kl), frame.y(run.result.gold), 6));
    labelRuns(canvas, frame, shown, curve);
    return frontierHover(canvas, frame, shown, frontier);
  });
  return figure;
}

function frontierCurve(frame, curve) {
  const line = frame.path(curve);
  const [end] = curve[curve.length - 1];
  const area = `${line}L${frame.x(end)},${frame.top}L${frame.left},${frame.top}Z`;
  const { left, top, right, bottom } = frame;
  const clip = svg("clipPath", { id: "plot" }, svg("rect", { x: left, y: top, width: right - left, height: bottom - top }));
  return svg(
    "g",
    {},
    clip,
    svg("path", { class: "beyond", d: area, "clip-path": "url(#plot)" }),
    svg("path", { class: "limit", d: line, "clip-path": "url(#plot)" }),
    svg("text", { class: "limit-text", x: right - 10, y: top + 20, "text-anchor": "end" }, "out of reach of any policy"),
  );
}

function referenceMark(frame, reference, runs) {
  const here = runs.filter((run) => run.result.kl <= AT_REFERENCE).map((run) => run.name);
  const [x, y] = [frame.x(0), frame.y(reference.gold)];
  const name = here.length ? `reference: ${here.join(", ")}` : "reference";
  return svg(
    "g",
    { class: "reference" },
    svg("path", { d: "M0,-7L7,0L0,7L-7,0Z", transform: `translate(${x},${y})` }),
    svg("text", { x: x + 13, y: y + 4 }, name),
  );
}

function distance(frame, run) {
  const x = frame.x(run.result.kl);
  return svg("line", {
    class: `distance ${look(run)}`,
    x1: x,
    x2: x,
    y1: frame.y(run.result.gold),
    y2: frame.y(run.result.frontier_gold),
  });
}

/** Names beside the marks, each at the first of some places where it covers nothing. */
function labelRuns(canvas, frame, runs, curve) {
  const taken = runs.map((run) => box(frame.x(run.result.kl) - 7, frame.y(run.result.gold) - 7, 14, 14));
  taken.push(...curve.map(([kl, gold]) => box(frame.x(kl) - 4, frame.y(gold) - 4, 8, 8)));
  taken.push(...[...canvas.querySelectorAll(".reference text, .limit-text")].map((text) => text.getBBox()));
  for (const run of runs) {
    const [x, y] = [frame.x(run.result.kl), frame.y(run.result.gold)];
    const text = svg("text", { class: "run-name" }, run.name);
    canvas.append(text);
    const { width, height } = text.getBBox();
    const beside = [0, 1, -1, 2, -2, 3, 4].map((line) => y - height / 2 + line * height);
    const centred = Math.min(Math.max(x - width / 2, frame.left), frame.right - width);
    const places = beside.flatMap((top) => [box(x + 12, top, width, height), box(x - 12 - width, top, width, height)]);
    places.splice(2, 0, box(centred, y + 9, width, height), box(centred, y - 9 - height, width, height));
    const free = places.find((place) => fits(place, frame) && !taken.some((other) => overlap(place, other))) || places[0];
    taken.push(free);
    text.setAttribute("x", free.x);
    text.setAttribute("y", free.y + 0.78 * height);
  }
}

function box(x, y, width, height) {
  return { x, y, width, height };
}

function fits(place, frame) {
  return frame.holds(place.x, place.y) && frame.holds(place.x + place.width, place.y + place.height);
}

function overlap(a, b) {
  return a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height;
}

function frontierHover(canvas, frame, runs, frontier) {
  const dot = svg("circle", { class: "limit-dot", r: 4.5, visibility: "hidden" });
  canvas.append(dot);
  return (x, y) => {
    dot.setAttribute("visibility", "hidden");
    if (!frame.holds(x, y)) return null;
    const far = (run) => Math.hypot(frame.x(run.result.kl) - x, frame.y(run.result.gold) - y);
    const run = runs.reduce((best, other) => (best && far(best) <= far(other) ? best : other), null);
    if (run && far(run) < 26) return runFacts(frame, run);
    const off = (point) => Math.abs(frame.x(point.kl) - x);
    const point = frontier.reduce((best, other) => (off(best) <= off(other) ? best : other));
    if (frame.x(point.kl) > frame.right) return null;
    dot.setAttribute("cx", frame.x(point.kl));
    dot.setAttribute("cy", frame.y(point.gold));
    dot.setAttribute("visibility", "visible");
    return {
      x: frame.x(point.kl),
      y: frame.y(point.gold) + 30,
      nodes: [
        html("strong", {}, `optimal policy at β ${+point.beta.toPrecision(2)}`),
        fact("gold", number(point.gold)),
        fact("KL, nats", number(point.kl)),
      ],
    };
  };
}

function runFacts(frame, run) {
  const { gold, kl, frontier_gold, efficiency, win_rate } = run.result;
  return {
    x: frame.x(kl),
    y: frame.y(gold),
    nodes: [
      html("strong", {}, swatch(run), run.name),
      fact("gold", number(gold)),
      fact("KL, nats", number(kl)),
      fact("best gold at that KL", number(frontier_gold)),
      fact("efficiency", percent(efficiency)),
      fact("win rate", percent(win_rate)),
    ],
  };
}
