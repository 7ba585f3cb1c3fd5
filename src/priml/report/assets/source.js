// Where rows and responses come from: blocks inside this file, or the server that sent the page.
function makeSource(table) {
  return table.inside ? insideSource(table.inside) : servedSource();
}

function servedSource() {
  async function ask(what, parameters) {
    const answer = await fetch(`${what}?${new URLSearchParams(parameters)}`);
    if (!answer.ok) throw new Error(await answer.text());
    return answer.json();
  }
  return {
    canSearchInside: true,
    rows: (query) => ask("rows", Object.fromEntries(Object.entries(query).filter(([, value]) => value !== "" && value !== null))),
    group: (run, step, problem) => ask("group", { run, step, problem }),
    patterns: () => ask("patterns", {}),
  };
}

/** JSON of a compressed block: gzip in base64, which the browser opens itself. */
async function unpack(block) {
  const bytes = Uint8Array.from(atob(block), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

function insideSource(inside) {
  let columns = null;
  const groups = {};
  return {
    canSearchInside: false,
    patterns: async () => data.table.patterns,
    async rows(query) {
      columns ??= Object.fromEntries(Object.entries(await unpack(inside.columns)).map(([name, column]) => [name, readable(column)]));
      return pageOf(columns, query);
    },
    async group(run, step, problem) {
      if (!(step in inside.blocks)) return [];
      groups[step] ??= unpack(inside.blocks[step]);
      return (await groups[step]).filter((response) => response.texts.problem_id === problem);
    },
  };
}

/** A column as `at(i)`, with what sorting and search need: numbers, or places among the different texts. */
function readable(column) {
  if (Array.isArray(column)) return { size: column.length, at: (i) => column[i], key: (i) => column[i] };
  const { values, codes } = column;
  const ranks = [];
  values.map((_, code) => code).sort((a, b) => (values[a] < values[b] ? -1 : 1)).forEach((code, rank) => { ranks[code] = rank; });
  const at = (i) => (codes[i] === null ? null : values[codes[i]]);
  return {
    size: codes.length, at,
    key: (i) => (codes[i] === null ? null : ranks[codes[i]]),
    holds(text) {
      const found = values.map((value) => value?.toLowerCase().includes(text));
      return (i) => codes[i] !== null && found[codes[i]];
    },
  };
}

/** The same arithmetic as `priml.report.index.RolloutIndex.find`. */
function pageOf(columns, query) {
  const tests = [];
  for (const name of ["filter_status", "verdict"])
    if (query[name]) tests.push((i) => columns[name].at(i) === query[name]);
  if (query.problem) tests.push((i) => columns.problem_id.at(i) === query.problem);
  if (query.pay === "wrong_paid") tests.push((i) => columns.verdict.at(i) === "wrong" && columns.above.at(i) > 0);
  if (query.pay === "right_unpaid") tests.push((i) => columns.verdict.at(i) === "correct" && columns.above.at(i) < 0 && columns.above.at(i) !== null);
  if (query.first_step !== "") tests.push((i) => columns.step.at(i) >= query.first_step);
  if (query.last_step !== "") tests.push((i) => columns.step.at(i) <= query.last_step);
  if (query.text) {
    const found = ["problem_id", "answer", "gold", "reason"].map((name) => columns[name].holds(query.text.toLowerCase()));
    tests.push((i) => found.some((holds) => holds(i)));
  }
  const total = columns.step.size;
  const places = [];
  for (let i = 0; i < total; i++) if (tests.every((test) => test(i))) places.push(i);
  const { key } = columns[query.sort];
  const sign = query.descending ? -1 : 1;
  places.sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === null || y === null) return (x === null) - (y === null) || a - b;
    return sign * (x - y) || a - b;
  });
  const start = (query.page - 1) * query.size;
  const row = (i) => Object.fromEntries(Object.entries(columns).map(([name, column]) => [name, column.at(i)]));
  return { rows: places.slice(start, start + query.size).map(row), count: places.length, total, note: "" };
}
