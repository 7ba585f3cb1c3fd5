// The order of the page.
function numbers() {
  if (!data.ranges.length) return;
  const titles = ["Metric", "First", "Last", "Lowest", "Highest"].map((title) => el("th", { scope: "col" }, title));
  const rows = data.ranges.map(({ key, first, last, low, high }) =>
    el("tr", {}, el("td", {}, key), ...[first, last, low, high].map((value) => el("td", {}, count(value)))));
  const table = el("table", {}, el("thead", {}, el("tr", {}, ...titles)), el("tbody", {}, ...rows));
  root.append(el("details", { class: "numbers" }, el("summary", {}, "Every recorded number"), el("div", { class: "scroll" }, table)));
}

head();
if (data.table) strangest();
if (!data.is_supervised) accuracy();
const grid = data.table ? rollouts() : null;
if (data.table) trust();
for (const part of data.sections) {
  const grid = part.charts.length ? el("div", { class: "grid" }, ...part.charts.map(figure)) : null;
  const absent = part.missing.length ? el("p", { class: "absent" }, `Not recorded: ${part.missing.join(", ")}.`) : null;
  section(part.title, part.lead, grid, absent);
}
tables();
if (!data.is_supervised) {
  time();
  if (data.rollouts) responses();
}
settings();
numbers();
root.append(el("footer", {}, data.written, " · charts by uPlot 1.6.32 (MIT), table by Tabulator 6.5.3 (MIT); their licences are in the source of this page"));
root.querySelector(".contents").append(...contents.map((title) => el("li", {}, el("a", { href: `#${slug(title)}` }, title))));
document.body.append(tip);

const drawAll = () => plots.forEach((entry) => entry.draw());
drawAll();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
addEventListener("scroll", onScroll, { passive: true });
// Paper is white whatever the screen was.
addEventListener("beforeprint", () => { document.documentElement.dataset.theme = "light"; drawAll(); });
addEventListener("afterprint", () => { delete document.documentElement.dataset.theme; drawAll(); });
live(() => grid?.setPage(grid.getPage()));
