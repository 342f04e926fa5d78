const data = JSON.parse(document.getElementById("data").textContent);
data.runs.forEach((run, index) => {
  run.index = index;
  run.result = data.report.runs[index];
});

function section(id, title, about, ...content) {
  if (content.every((node) => node === null)) return null;
  const head = html("h2", { id: `${id}-title` }, title);
  const lead = about && html("p", { class: "about" }, about);
  return html("section", { class: "part", "aria-labelledby": head.id }, head, lead, ...content);
}

/** The runs as switches: a click takes one out of every picture, or back. */
function legend(runs) {
  const bar = html("nav", { class: "legend", "aria-label": "Runs shown" });
  for (const run of runs) {
    const click = ({ currentTarget }) => {
      view.toggle(run);
      currentTarget.setAttribute("aria-pressed", String(view.shows(run)));
    };
    const attributes = { type: "button", "aria-pressed": "true", title: "Show or hide this run", click };
    bar.append(html("button", attributes, swatch(run), run.name));
  }
  return bar;
}

function heading({ group, runs, report, best_accuracy, remarks }) {
  const facts = [`${runs.length} run${runs.length === 1 ? "" : "s"}`];
  if (report.reference.gold !== null) facts.push(`gold of the reference ${number(report.reference.gold)}`);
  if (best_accuracy !== null) facts.push(`best possible accuracy of a reward model ${percent(best_accuracy)}`);
  return html(
    "header",
    {},
    html("p", { class: "brand" }, "lit_align"),
    html("h1", {}, group),
    html("p", { class: "facts" }, facts.join(" · ")),
    finding(runs, remarks),
  );
}

/** The run with most gold, in a sentence, and whether that deserves doubt; null where none left the reference. */
function finding(runs, remarks) {
  const moved = runs.filter((run) => run.result.efficiency !== null);
  if (!moved.length) return null;
  const best = moved.reduce((a, b) => (a.result.gold >= b.result.gold ? a : b));
  const { gold, kl, efficiency } = best.result;
  const share = `${percent(efficiency)} of the gain that ${short(kl)} nats of KL can buy.`;
  const doubt = remarks.some((remark) => remark.startsWith(`${best.name}: `)) ? " But see the note under Results." : "";
  return html("p", { class: "finding" }, html("strong", {}, best.name), ` has the most gold, ${short(gold)}: ${share}${doubt}`);
}

function notesList(notes) {
  return notes.length ? html("ul", { class: "notes" }, ...notes.map((note) => html("li", {}, note))) : null;
}

function configs(runs) {
  const fold = (run) =>
    html(
      "details",
      {},
      html("summary", {}, swatch(run), run.name, html("small", {}, run.method)),
      html("pre", { tabindex: 0 }, run.config),
    );
  return html("div", { id: "configs" }, ...runs.map(fold));
}

function lastLogged() {
  const table = lastLoggedTable(data);
  const summary = html("summary", {}, "The last value of everything that was logged");
  return table && html("details", { open: !data.report.frontier.length }, summary, table);
}

const parts = [
  section(
    "frontier",
    "Reward against KL",
    "Exact, over every possible response. The line is the most gold that any policy can have at a KL; " +
      "dotted is what a run left on the table.",
    data.report.frontier.length ? frontierFigure(data) : null,
  ),
  section("results", "Results", "A click on a title sorts.", resultsTable(data), sampledTable(data), notesList(data.remarks)),
  section(
    "wins",
    "Who wins",
    "How often a response of the run at the left has more gold than one of the run above, ties as half.",
    winsTable("wins-exact", data.runs, data.report.win_rates),
    winsTable("wins-sampled", data.runs, data.sampled.win_rates),
  ),
  section("curves", "Training", "A pale line is what was logged, a strong one its running mean.", curvesFigure(data), lastLogged()),
  section("samples", "Responses", null, samplesSection(data.samples, data.runs)),
  section("configs", "Configs", "Each run as it was merged from its files and command line.", configs(data.runs)),
];
document.body.append(html("main", {}, heading(data), legend(data.runs), ...parts.filter((part) => part)));
