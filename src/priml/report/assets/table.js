// All rollouts: filters, the grid (Tabulator), and the responses to one problem that it opens.
const NO_FILTER = { filter_status: "", verdict: "", pay: "", problem: "", first_step: "", last_step: "", text: "", inside: "" };
const COLUMNS = [
  ["step", "step", count], ["problem_id", "problem"], ["sample", "sample", count], ["verdict", "verdict"],
  ["filter_status", "filter status"], ["paid", "paid", number], ["above", "above siblings", number], ["tokens", "tokens", count], ["outcome", "outcome", number],
  ["answer", "answer"], ["gold", "gold"], ["reason", "reason"], ["finish_reason", "finished by"], ["source", "source"],
];

function rollouts() {
  const table = data.table;
  if (!table.total) {
    section("Rollouts", null, el("p", { class: "absent" }, "There are no responses to show."));
    return null;
  }
  const source = makeSource(table);
  const state = { ...NO_FILTER, run: 0, sort: table.is_outcome_only ? "step" : "above", descending: true };
  const found = el("p", { class: "found", role: "status" });
  const holder = el("div", { class: "grid-holder" });
  const panel = el("div", { class: "opened", id: "opened" });
  const grid = makeGrid(holder, source, state, found);
  const controls = filters(source, state, () => grid.setPage(1), grid);
  section("Rollouts", lead(table), controls.node, found, holder, panel);
  const show = (hash) => {
    const place = placeIn(hash);
    if (place) open(panel, source, place, (problem) => controls.set({ ...NO_FILTER, problem }));
  };
  addEventListener("hashchange", () => show(location.hash));
  show(location.hash);
  return grid;
}

function lead(table) {
  const inside = table.inside && table.inside.num_responses < table.total
    ? ` The tokens of ${grouped.format(table.inside.num_responses)} of them are inside this file; the others are listed, `
      + `and open with: priml view ${table.run}` : "";
  const paid = table.is_outcome_only ? "" : " Paid is the sum of a response's process rewards, above siblings what that is above the mean of its prompt; dropped ones have none.";
  return `Every response of ${grouped.format(table.steps)} steps, dropped ones too.${paid}${inside}`;
}

// --- links -------------------------------------------------------------------------------------------------------

/** `#step/problem/sample/token`; the token may be left out. */
function placeIn(hash) {
  const parts = hash.slice(1).split("/");
  if (parts.length < 3 || !/^\d+$/.test(parts[0])) return null;
  return { run: 0, step: Number(parts[0]), problem: decodeURIComponent(parts[1]), sample: Number(parts[2]), token: parts[3] === undefined ? null : Number(parts[3]) };
}

function linkTo({ step, problem, sample }, token = null) {
  return `#${step}/${encodeURIComponent(problem)}/${sample}${token === null ? "" : `/${token}`}`;
}

// --- filters -----------------------------------------------------------------------------------------------------

function filters(source, state, changed, grid) {
  const inputs = {};
  const node = el("form", { class: "filters", role: "search", "aria-label": "Filter the rollouts" });
  node.addEventListener("submit", (event) => event.preventDefault());
  const add = (name, label, input) => {
    inputs[name] = input;
    input.value = state[name];
    input.addEventListener("change", () => { state[name] = input.value.trim(); changed(); });
    node.append(el("label", {}, el("span", {}, label), input));
  };
  const pick = (options) => el("select", {}, ...options.map(([value, label]) => el("option", { value }, label)));
  const named = (names) => [["", "all"], ...names.map((name) => [name, name.replace("_", " ")])];
  if (!data.table.is_outcome_only) add("pay", "Disagreement",
    pick([["", "all"], ["wrong_paid", "wrong, paid above siblings"], ["right_unpaid", "right, paid below"]]));
  add("filter_status", "Filter status", pick(named(data.table.statuses)));
  add("verdict", "Verdict", pick(named(["correct", "wrong", "undecided"])));
  add("first_step", "From step", el("input", { type: "number", min: 0 }));
  add("last_step", "To step", el("input", { type: "number", min: 0 }));
  add("text", "Problem, answer, gold, reason", el("input", { type: "search" }));
  if (source.canSearchInside) add("inside", "Text of the response", el("input", { type: "search" }));
  add("problem", "One problem in all steps", el("input", { type: "search" }));
  const sort = pick(COLUMNS.flatMap(([name, label]) => [[`${name} desc`, `${label}, high first`], [`${name} asc`, `${label}, low first`]]));
  sort.value = `${state.sort} desc`;
  sort.addEventListener("change", () => { const [name, way] = sort.value.split(" "); grid.setSort(name, way); });
  grid.on("dataSorted", (sorters) => { if (sorters.length) sort.value = `${sorters[0].field} ${sorters[0].dir}`; });
  node.append(el("label", {}, el("span", {}, "Sort by"), sort));
  const set = (values) => {
    Object.assign(state, values);
    for (const [name, input] of Object.entries(inputs)) input.value = state[name];
    changed();
  };
  const reset = el("button", { type: "button" }, "Clear");
  reset.addEventListener("click", () => set(NO_FILTER));
  node.append(reset);
  return { node, set };
}

// --- the grid ----------------------------------------------------------------------------------------------------

function makeGrid(holder, source, state, found) {
  const text = (format) => (cell) => {
    const value = cell.getValue();
    return document.createTextNode(format ? format(value) : value === null || value === undefined ? "–" : String(value).replaceAll("\n", " "));
  };
  const opener = (cell) => {
    const row = cell.getData();
    return el("a", { href: linkTo({ step: row.step, problem: row.problem_id, sample: row.sample }), class: row.inside === 0 ? "outside" : "",
      "aria-label": `Open step ${row.step}, problem ${row.problem_id}, sample ${row.sample}` }, row.inside === 0 ? "listed" : "open");
  };
  const columns = COLUMNS.map(([field, title, format]) => ({
    field, title, formatter: text(format), hozAlign: format ? "right" : "left", headerHozAlign: format ? "right" : "left",
    headerSortStartingDir: "desc", widthGrow: field === "reason" ? 1 : undefined, maxWidth: 260, minWidth: 64,
  }));
  const grid = new Tabulator(holder, {
    ajaxURL: "rows",
    ajaxRequestFunc: async (url, config, { page, size, sort }) => {
      const by = sort?.[0] ?? { field: state.sort, dir: "desc" };
      const query = { ...state, page, size, sort: by.field, descending: by.dir === "desc" };
      const { rows, count: matching, total, note } = await source.rows(query);
      found.textContent = `${grouped.format(matching)} of ${grouped.format(total)} rollouts. ${note}`;
      return { data: rows, last_page: Math.max(1, Math.ceil(matching / size)), last_row: matching };
    },
    pagination: true, paginationMode: "remote", paginationSize: 25, paginationSizeSelector: [10, 25, 50, 100],
    dataLoader: false, sortMode: "remote", initialSort: [{ column: state.sort, dir: "desc" }],
    layout: "fitDataStretch", placeholder: "No rollout matches.",
    columns: [{ title: "", titleFormatter: () => document.createTextNode("open"), formatter: opener, headerSort: false, width: 76, frozen: innerWidth > 720 }, ...columns],
  });
  grid.on("dataLoadError", (error) => { found.textContent = `No rows came: ${error.message}`; });
  grid.on("rowClick", (event, row) => {
    if (event.target.tagName !== "A") location.hash = linkTo({ step: row.getData().step, problem: row.getData().problem_id, sample: row.getData().sample });
  });
  return grid;
}

// --- what it opens -----------------------------------------------------------------------------------------------

async function open(panel, source, place, showProblem) {
  panel.replaceChildren(el("p", { class: "absent" }, "Opening …"));
  let group;
  try {
    group = await source.group(place.run, place.step, place.problem);
  } catch (error) {
    panel.replaceChildren(el("p", { class: "absent" }, `It cannot be opened: ${error.message}`));
    return;
  }
  if (!group.length) {
    panel.replaceChildren(el("p", { class: "absent" }, "The tokens of this response are not inside this file. ",
      "They open with: ", el("code", {}, `priml view ${data.table.run}`)));
    panel.scrollIntoView({ block: "nearest" });
    return;
  }
  const title = el("h3", { tabindex: -1 }, `Step ${place.step} · ${place.problem}`);
  const all = el("button", { type: "button" }, "This problem in all steps");
  all.addEventListener("click", () => { showProblem(place.problem); document.getElementById("rollouts").scrollIntoView(); });
  const body = el("div");
  const measures = Object.keys(MEASURES).filter((name) => group.some((response) => response.numbers[name]));
  const state = { measure: measures[0] };
  const key = el("p", { class: "scale" });
  const draw = () => {
    const limit = data.table.limits[state.measure];
    drawKey(key, state.measure, limit, group);
    const chosen = group.find((response) => response.sample === place.sample) ?? group[0];
    const shown = card(chosen, state.measure, limit, { prompt: false });
    body.replaceChildren(tree(group, state.measure, limit, place), el("div", { class: "responses one" }, shown));
    const token = place.token === null ? null : shown.querySelector(`.t[data-i="${place.token}"]`);
    if (token) token.focus();
  };
  const controls = el("div", { class: "controls" }, all);
  if (measures.length > 1) controls.append(choice("Colour by", measures.map((name) => [name, MEASURES[name]]),
    state.measure, (measure) => { state.measure = measure; draw(); }));
  const prompt = group[0].texts.prompt;
  panel.replaceChildren(title, prompt ? el("div", { class: "text prompt", tabindex: 0 }, prompt) : el("p"), controls, key, body);
  draw();
  if (place.token === null) title.focus();
}
