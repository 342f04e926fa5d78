const FEW = 30; // points; so few are marked one by one, and not smoothed

/** What the runs logged over training: one metric at a time, the runs over one another; null where nothing was logged. */
function curvesFigure(data) {
  const names = [...new Set(data.runs.flatMap((run) => Object.keys(run.curves)))].sort();
  if (!names.length) return null;
  const metric = metricMenu(names, data.runs);
  const smoothing = html("input", { type: "range", id: "smoothing", min: 0, max: 0.98, step: 0.02, value: 0.6 });
  const amount = html("output", { for: "smoothing" });
  const figure = html("figure", { id: "curves" });
  const missing = html("figcaption");
  const redraw = chart(figure, "Training curves", (canvas, width) => {
    const runs = data.runs.filter((run) => run.curves[metric.value] && view.shows(run));
    const silent = data.runs.filter((run) => !run.curves[metric.value]).map((run) => run.name);
    missing.textContent = silent.length ? `Not logged by ${silent.join(", ")}.` : "";
    return drawCurves(canvas, width, metric.value, runs, Number(smoothing.value));
  });
  const change = () => {
    amount.textContent = Number(smoothing.value).toFixed(2);
    redraw();
  };
  metric.addEventListener("change", change);
  smoothing.addEventListener("input", change);
  change();
  const controls = html(
    "div",
    { class: "controls" },
    html("label", {}, "metric ", metric),
    html("label", { title: "Weight of what came before in the running mean" }, "smoothing ", smoothing, amount),
  );
  return html("div", {}, controls, figure, missing);
}

/** Metrics by stage, open at one that many runs logged and that can be compared, validation before training. */
function metricMenu(names, runs) {
  const stage = (name) => (name.includes("/") ? name.split("/")[0] : "other");
  const logged = (name) => runs.filter((run) => run.curves[name]?.values.length > 1).length; // one point is no curve
  const mixed = new Set(runs.map((run) => run.method)).size > 1;
  const unlike = (name) => mixed && /\/(loss|lr|grad_norm)$/.test(name); // of other methods: not to be compared
  const telling = (name) => (/accuracy$/.test(name) ? 1.5 : 0) + (stage(name) === "val" ? 0.5 : 0);
  const rank = (name) => (unlike(name) ? 0 : logged(name)) + telling(name);
  const first = names.reduce((best, name) => (rank(name) > rank(best) ? name : best));
  const option = (value) => html("option", { value, selected: value === first }, value);
  const groups = [...new Set(names.map(stage))].map((label) =>
    html("optgroup", { label }, ...names.filter((name) => stage(name) === label).map(option)),
  );
  return html("select", { id: "metric" }, ...groups);
}

/** Running mean in which the past counts `weight`, without the pull of its start towards zero. */
function smooth(values, weight) {
  let [sum, total] = [0, 0];
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

function drawCurves(canvas, width, name, runs, weight) {
  const series = runs.map((run) => {
    const { steps, values } = run.curves[name];
    return { run, steps, values, shown: values.length > FEW ? smooth(values, weight) : values };
  });
  const finite = series.flatMap((line) => line.values.filter((value) => value !== null));
  const height = Math.min(420, Math.max(280, 0.45 * width));
  canvas.setAttribute("height", height);
  if (!finite.length) {
    const why = series.length ? "Nothing but NaN or infinity was logged." : "None of the runs shown logged this.";
    canvas.append(svg("text", { class: "empty", x: width / 2, y: height / 2, "text-anchor": "middle" }, why));
    return () => null;
  }
  const end = Math.max(1, ...series.map((line) => line.steps[line.steps.length - 1]));
  const frame = new Frame(width, height, [0, 1.02 * end], widen(finite, 0.06));
  canvas.append(frame.axes("step", name));
  for (const line of series) canvas.append(drawLine(frame, line));
  return curvesHover(canvas, frame, series);
}

function drawLine(frame, { run, steps, values, shown }) {
  const points = (of) => of.map((value, i) => (value === null ? null : [steps[i], value]));
  const group = svg("g", { class: `line ${look(run)}` });
  if (shown !== values) group.append(svg("path", { class: "raw", d: frame.path(points(values)) }));
  group.append(svg("path", { d: frame.path(points(shown)) }));
  if (values.length <= FEW) {
    for (const point of points(values)) {
      if (point) group.append(mark(run, frame.x(point[0]), frame.y(point[1]), 3.5));
    }
  }
  return group;
}

/** A line at the step under the pointer, and every run's value there. */
function curvesHover(canvas, frame, series) {
  const rule = svg("line", { class: "rule", y1: frame.top, y2: frame.bottom, visibility: "hidden" });
  canvas.append(rule);
  return (x, y) => {
    rule.setAttribute("visibility", "hidden");
    if (!frame.holds(x, y)) return null;
    const found = series.map(({ run, steps, shown }) => {
      const i = nearest(steps.map((step) => Math.abs(frame.x(step) - x)));
      return { run, step: steps[i], value: shown[i], far: Math.abs(frame.x(steps[i]) - x) };
    });
    const { step } = found[nearest(found.map((each) => each.far))];
    const near = found.filter((each) => each.far < 24).sort((a, b) => compare(a.value, b.value, true));
    if (!near.length) return null;
    rule.setAttribute("x1", frame.x(step));
    rule.setAttribute("x2", frame.x(step));
    rule.setAttribute("visibility", "visible");
    const lines = near.map((each) => fact(each.run.name, each.value === null ? "not finite" : number(each.value), each.run));
    return { x: frame.x(step), y, nodes: [html("strong", {}, `step ${step}`), ...lines] };
  };
}

function nearest(distances) {
  return distances.reduce((best, distance, i) => (distance < distances[best] ? i : best), 0);
}
