// What every part of the page builds with. Text from a run only ever becomes text nodes.
const data = JSON.parse(document.getElementById("data").textContent);
const root = document.getElementById("report");

// --- building ----------------------------------------------------------------------------------------------------

/** An element with attributes and children; strings become text. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) node.setAttribute(name, "");
    else if (value !== null && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const three = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const MINUS = "\u2212";
const GAP = "\u00a0"; // between a number and its unit, where a line must not break

function number(x) {
  if (x === null || x === undefined) return "–";
  const size = Math.abs(x);
  const text = size !== 0 && (size < 1e-4 || size >= 1e7) ? x.toExponential(1) : three.format(x);
  return text.replace("-", MINUS);
}

function count(x) {
  return Number.isInteger(x) ? grouped.format(x) : number(x);
}

function percent(x, digits = 1) {
  return x === null || x === undefined ? "–" : `${(100 * x).toFixed(digits).replace("-", MINUS)}${GAP}%`;
}

function seconds(x) {
  if (x === null || x === undefined) return "–";
  if (x >= 5400) return `${(x / 3600).toFixed(1)}${GAP}h`;
  if (x >= 90) return `${(x / 60).toFixed(1)}${GAP}min`;
  return x !== 0 && x < 0.1 ? `${number(1000 * x)}${GAP}ms` : `${number(x)}${GAP}s`;
}

const formats = { share: percent, number, count, seconds };

function slug(title) {
  return title.toLowerCase().replace(/[^a-z]+/g, "-");
}

const contents = [];
function section(title, lead, ...children) {
  contents.push(title);
  const heading = el("h2", {}, title);
  root.append(el("section", { id: slug(title) }, heading, lead ? el("p", { class: "lead" }, lead) : null, ...children));
}

/** Radio buttons in a row; `onPick` gets the value on every change. */
function choice(legend, options, picked, onPick) {
  const name = slug(legend);
  const inputs = options.map(([value, label]) => {
    const input = el("input", { type: "radio", name, value, checked: value === picked });
    input.addEventListener("change", () => onPick(value));
    return el("label", {}, input, label);
  });
  return el("fieldset", { class: "choice" }, el("legend", {}, legend), el("div", { class: "options" }, ...inputs));
}
