/** Responses of the runs side by side, with a search; null where there are none. */
function samplesSection(sets, runs) {
  if (!sets.length) return null;
  const choose = html("select", { id: "samples-from" }, ...sets.map((set, i) => html("option", { value: i }, set.title)));
  const hint = "search prompts and responses";
  const search = html("input", { type: "search", id: "search", placeholder: hint, "aria-label": hint });
  const count = html("span", { class: "count", role: "status" });
  const list = html("div", { id: "samples" });
  const known = html("p", { class: "about" });
  const fill = () => {
    const set = sets[Number(choose.value)];
    const cards = set.prompts.map((prompt) => promptCard(set, prompt, runs, search.value.trim())).filter((card) => card);
    list.replaceChildren(...cards);
    const prompts = `${set.prompts.length} prompt${set.prompts.length === 1 ? "" : "s"}`;
    const left = set.left_out ? `, ${set.left_out} more left out` : "";
    count.textContent = (search.value.trim() ? `${cards.length} of ${prompts}` : prompts) + left;
    const ratio = "pale: log-probability minus the reference's, nats.";
    known.textContent = `The same prompts, answered by each run. Bold: ${set.score}; ${ratio}`;
  };
  search.addEventListener("input", fill);
  choose.addEventListener("change", fill);
  view.listeners.push(fill);
  fill();
  const controls = html("div", { class: "controls" }, html("label", {}, "responses ", choose), search, count);
  return html("div", {}, known, controls, list);
}

/** One prompt and what each run answered; null where nothing in it matches. */
function promptCard(set, prompt, runs, query) {
  const all = matches(prompt, query);
  const columns = runs
    .filter((run) => set.runs[run.name] && view.shows(run))
    .map((run) => {
      const { step, responses } = set.runs[run.name];
      const answers = (responses[prompt] ?? []).filter((answer) => all || matches(answer.response, query));
      return { run, step, answers };
    });
  if (!all && !columns.some((column) => column.answers.length)) return null;
  return html(
    "article",
    {},
    html("h3", {}, ...marked(prompt, query)),
    html("div", { class: "columns" }, ...columns.map((column) => answersColumn(column, set.score, query))),
  );
}

function answersColumn({ run, step, answers }, score, query) {
  const when = step === null ? null : html("small", {}, `step ${step}`);
  const items = answers.map((answer) =>
    html(
      "li",
      {},
      html("span", { class: "response" }, ...responseText(answer, query)),
      html("b", { title: score }, answer.score === null ? "" : short(answer.score)),
      html("span", { class: "ratio", title: "log-ratio, nats" }, answer.kl === null ? "" : short(answer.kl)),
    ),
  );
  const content = items.length ? html("ul", {}, ...items) : html("p", { class: "none" }, "–");
  return html("section", { class: look(run) }, html("h4", {}, swatch(run), run.name, when), content);
}

function responseText({ response, finished }, query) {
  const nodes = response ? marked(response, query) : [html("i", {}, "empty")];
  return finished === false ? [...nodes, html("i", { title: "It ran into the length limit" }, " … unfinished")] : nodes;
}

function matches(text, query) {
  return text.toLowerCase().includes(query.toLowerCase());
}

/** A text as nodes, with every occurrence of a query marked. */
function marked(text, query) {
  if (!query) return [text];
  const lower = text.toLowerCase();
  const nodes = [];
  let from = 0;
  for (let at = lower.indexOf(query.toLowerCase()); at >= 0; at = lower.indexOf(query.toLowerCase(), from)) {
    nodes.push(text.slice(from, at), html("mark", {}, text.slice(at, at + query.length)));
    from = at + query.length;
  }
  return [...nodes, text.slice(from)];
}
