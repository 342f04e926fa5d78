const COLUMNS = [
  ["gold", "gold", number, "Expected gold score of the policy"],
  ["kl", "KL, nats", number, "KL(policy || reference)"],
  ["frontier_gold", "best gold at that KL", number, "The most expected gold that any policy can have at this KL"],
  ["efficiency", "efficiency", percent, "Share of the gain over the reference that was possible at this KL"],
  ["win_rate", "win rate", percent, "How often its response has more gold than the reference's, ties as half"],
  ["accuracy", "accuracy", percent, "Of a reward model: how often it agrees with the label of a pair"],
];

/** The exact results, one row a run; null where there are none. */
function resultsTable(data) {
  const columns = COLUMNS.filter(([key]) => data.runs.some((run) => run.result[key] !== null));
  if (!columns.length) return null;
  const head = [
    { title: "run", value: (run) => run.name },
    { title: "method", value: (run) => run.method },
    ...columns.map(([key, title, format, help]) => ({ title, format, help, value: (run) => run.result[key], key })),
  ];
  return sortable("results", head, data.runs, (run, column) => {
    if (column.title === "run") return html("span", { class: "named" }, swatch(run), run.name);
    if (column.key !== "efficiency" || run.result.efficiency === null) return null;
    const bar = html("span", { class: "bar" });
    bar.style.width = `${Math.min(1, Math.max(0, run.result.efficiency)) * 100}%`;
    return html("span", { class: `gauge ${look(run)}` }, bar, percent(run.result.efficiency));
  });
}

/** What was measured on samples, one row a run; null where nothing was. */
function sampledTable({ runs, sampled }) {
  const rows = runs.filter((run) => sampled.results[run.name]);
  if (!rows.length) return null;
  const of = (run) => sampled.results[run.name];
  const skills = [...new Set(rows.flatMap((run) => Object.keys(of(run).skills)))];
  const head = [
    { title: "run", value: (run) => run.name },
    { title: "method", value: (run) => run.method },
    ...["gold", "kl"].flatMap((key) => [
      { title: key === "kl" ? "KL, nats" : key, format: short, value: (run) => of(run)[key]?.mean ?? null },
      { title: "±", format: short, help: "Standard error", value: (run) => of(run)[key]?.std_error ?? null },
    ]),
    ...skills.map((name) => ({ title: name.replaceAll("_", " "), format: percent, value: (run) => of(run).skills[name] })),
  ];
  return sortable("sampled", head, rows, (run, column) =>
    column.title === "run" ? html("span", { class: "named" }, swatch(run), run.name) : null,
  );
}

/** How often the run of each row wins against that of each column; null where there are not two. */
function winsTable(id, runs, rates) {
  const rows = runs.filter((run) => rates[run.name]);
  if (rows.length < 2) return null;
  const fill = () => {
    const shown = rows.filter((run) => view.shows(run));
    const heads = shown.map((run) => html("th", { scope: "col", class: "number" }, swatch(run), ` ${run.name}`));
    const lines = shown.map((run) => {
      const cells = shown.map((rival) => winCell(run, rival, rates));
      return html("tr", {}, html("th", { scope: "row" }, html("span", { class: "named" }, swatch(run), run.name)), ...cells);
    });
    table.replaceChildren(
      html("thead", {}, html("tr", {}, html("th", { scope: "col" }, "wins against"), ...heads)),
      html("tbody", {}, ...lines),
    );
  };
  const table = html("table", { id });
  fill();
  view.listeners.push(fill);
  return html("div", { class: "scroll" }, table);
}

function winCell(run, rival, rates) {
  const rate = rates[run.name][rival.name];
  if (rate === undefined) return html("td", { class: "number self" }, "–");
  const cell = html("td", { class: `number ${rate > 0.5 ? "wins" : "loses"}` }, percent(rate));
  cell.style.setProperty("--lean", `${Math.round(Math.abs(rate - 0.5) * 100)}%`);
  return cell;
}

/** The last value of everything that was logged, one row a metric; null where nothing was. */
function lastLoggedTable(data) {
  const runs = data.runs.filter((run) => Object.keys(run.curves).length);
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.curves)))].sort();
  if (!names.length) return null;
  const last = (run, name) => (run.curves[name] ? run.curves[name].values[run.curves[name].values.length - 1] : null);
  const head = [
    { title: "metric", value: (name) => name },
    ...runs.map((run) => ({ title: run.name, format: number, value: (name) => last(run, name) })),
  ];
  return sortable("last", head, names, () => null);
}

/** A table that a click on a title sorts: numbers from high to low first, what has no number always last. */
function sortable(id, columns, rows, cell) {
  const body = html("tbody");
  const order = { column: null, descending: true };
  const fill = () => {
    const { value } = columns[order.column ?? 0];
    const sorted = order.column === null ? rows : [...rows].sort((a, b) => compare(value(a), value(b), order.descending));
    body.replaceChildren(
      ...sorted.map((row) => {
        const cells = columns.map((column) => {
          const text = column.format ? column.format(column.value(row)) : column.value(row);
          return html(column === columns[0] ? "th" : "td", { class: column.format ? "number" : "" }, cell(row, column) ?? text);
        });
        return html("tr", { class: row.name && !view.shows(row) ? "off" : "" }, ...cells);
      }),
    );
  };
  const heads = columns.map((column, index) => {
    const click = () => {
      order.descending = order.column === index ? !order.descending : Boolean(column.format);
      order.column = index;
      heads.forEach((head) => head.removeAttribute("aria-sort"));
      heads[index].setAttribute("aria-sort", order.descending ? "descending" : "ascending");
      fill();
    };
    const button = html("button", { type: "button", title: column.help ?? null, click }, column.title);
    return html("th", { scope: "col", class: column.format ? "number" : "" }, button);
  });
  fill();
  view.listeners.push(fill);
  return html("div", { class: "scroll" }, html("table", { id }, html("thead", {}, html("tr", {}, ...heads)), body));
}

function compare(a, b, descending) {
  if (a === null || b === null) return (a === null) - (b === null);
  const sign = descending ? -1 : 1;
  return sign * (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
}
