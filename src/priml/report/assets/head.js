// The head of the page, accuracy before and after, and plain tables.
function head() {
  root.append(
    el("p", { class: "brand" }, "priml report"),
    el("h1", {}, data.title),
    el("p", { class: "headline" }, data.headline),
    el("p", { class: "details" }, data.details.join(" ")),
    el("nav", { "aria-label": "Contents" }, el("ul", { class: "contents" })),
  );
  if (data.alarms?.length) {
    const items = data.alarms.map(({ name, meaning, steps }) => el("li", {}, el("b", {}, name), ` after step ${steps.join(", ")}: ${meaning}`));
    root.append(el("div", { class: "notes alarms" }, el("h3", {}, "Alarms"), el("ul", {}, ...items)));
  }
  if (data.notes.length) {
    const items = data.notes.map((note) => el("li", {}, note));
    root.append(el("div", { class: "notes" }, el("h3", {}, "What is missing"), el("ul", {}, ...items)));
  }
}

// --- accuracy ----------------------------------------------------------------------------------------------------

function accuracy() {
  if (data.accuracy === null) return;
  if (!data.accuracy.length) {
    section("Accuracy", null, el("p", { class: "absent" }, "No accuracy before and after training was recorded."));
    return;
  }
  const measures = el("div", { class: "measures" });
  const rows = [];
  for (const { name, before, after } of data.accuracy) {
    const measure = el("div", { class: "measure" }, el("h3", {}, name));
    for (const [when, score] of [["before", before], ["after", after]]) {
      if (score) measure.append(el("span", { class: "when" }, when), track(name, when, score));
    }
    measures.append(measure);
    const change = before && after ? 100 * (after.mean - before.mean) : null;
    rows.push(el("tr", {},
      el("td", {}, name), scoreCell(before), scoreCell(after),
      el("td", {}, change === null ? "–" : `${change > 0 ? "+" : ""}${change.toFixed(1).replace("-", MINUS)}`),
      el("td", {}, count((after ?? before).n))));
  }
  measures.append(el("div", { class: "measure" }, scale([0, 25, 50, 75, 100].map((tick) => [tick / 100, `${tick}${GAP}%`]))));
  const titles = ["", "Before", "After", "Points", "n"].map((title) => el("th", { scope: "col" }, title));
  const table = el("table", {}, el("thead", {}, el("tr", {}, ...titles)), el("tbody", {}, ...rows));
  section("Accuracy", "Accuracy on n held-out problems before and after training. Bars are 95\u00a0% confidence intervals.",
    el("div", { class: "accuracy" }, measures, el("div", { class: "scroll" }, table)));
}

/** Labels under a track, each centred on its place (a share of the width). */
function scale(labels) {
  const line = el("div", { class: "ticks", "aria-hidden": "true" });
  for (const [place, label] of labels) {
    const tick = el("span", {}, label);
    tick.style.left = `${100 * place}%`;
    line.append(tick);
  }
  return line;
}

function track(name, when, score) {
  const dot = el("span", { class: "dot" });
  dot.style.left = `${100 * score.mean}%`;
  const label = `${name} ${when}: ${percent(score.mean)}`;
  const line = el("div", { class: `track ${when}`, role: "img", "aria-label": label, title: label });
  if (score.low !== null && score.high !== null) {
    const bar = el("span", { class: "bar" });
    bar.style.left = `${100 * score.low}%`;
    bar.style.width = `${100 * (score.high - score.low)}%`;
    line.append(bar);
  }
  line.append(dot);
  return line;
}

function scoreCell(score) {
  if (!score) return el("td", {}, "–");
  const interval = score.low === null || score.high === null ? null
    : el("span", { class: "interval" }, `${(100 * score.low).toFixed(1)} to ${(100 * score.high).toFixed(1)}`);
  return el("td", {}, percent(score.mean), interval);
}

// --- tables ------------------------------------------------------------------------------------------------------

function tables() {
  for (const { title, lead, columns, rows } of data.tables ?? []) {
    const titles = columns.map((column) => el("th", { scope: "col" }, column));
    const cells = rows.map((row) => el("tr", {}, ...row.map((cell) => el("td", {}, cell))));
    const table = el("table", {}, el("thead", {}, el("tr", {}, ...titles)), el("tbody", {}, ...cells));
    section(title, lead, el("div", { class: "scroll" }, table));
  }
}

/** The settings that are not the defaults, and where the run ran. */
function settings() {
  const facts = el("dl", { class: "facts" });
  for (const [label, value] of data.facts)
    facts.append(el("div", { class: value.length > 48 ? "wide" : "" }, el("dt", {}, label), el("dd", {}, value)));
  const changed = data.settings?.length
    ? [el("h3", { class: "changed" }, "Settings that are not the defaults"), el("ul", { class: "settings" }, ...data.settings.map((line) => el("li", {}, el("code", {}, line))))] : [];
  section("Settings", null, facts, ...changed);
}
