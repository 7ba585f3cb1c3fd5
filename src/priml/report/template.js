"use strict";
// Draws the report from the JSON beside it. Text from the run only ever becomes text nodes and attribute-free content.
(() => {
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

  // --- charts ------------------------------------------------------------------------------------------------------

  const plots = []; // { draw, plot }, so that a change of theme can draw them all again

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  function seriesClass(series, index) {
    return series.kind === "rule" ? "rule" : `s${index % 8}`;
  }

  function describe(chart) {
    const format = formats[chart.unit];
    const parts = chart.series.map((series) => {
      const seen = chart.steps.map((step, i) => [step, series.values[i]]).filter(([, value]) => value !== null);
      const [firstStep, first] = seen[0];
      const [lastStep, last] = seen[seen.length - 1];
      return series.kind === "rule" ? `${series.label}: ${format(first)}`
        : `${series.label}: ${format(first)} at ${chart.axis} ${firstStep}, ${format(last)} at ${chart.axis} ${lastStep}`;
    });
    return `${chart.title}. ${parts.join("; ")}`;
  }

  function figure(chart) {
    const format = formats[chart.unit];
    const plotted = el("div", { class: "plot", role: "img", "aria-label": describe(chart) });
    const at = el("span", { class: "at" });
    const values = chart.series.map(() => el("b"));
    const legend = el("ul", { class: "legend", "aria-hidden": "true" }, el("li", {}, at));
    chart.series.forEach((series, i) => {
      const shape = chart.is_stacked ? " block" : series.kind === "rule" ? " dashed" : "";
      const swatch = el("span", { class: `swatch ${seriesClass(series, i)}${shape}` });
      legend.append(el("li", {}, swatch, series.label, series.kind === "rule" ? null : values[i]));
    });
    /** The numbers of the step under the cursor; without a cursor, the latest of each series. */
    function show(index) {
      const last = chart.axis === "step" ? "latest" : `${chart.axis} ${chart.steps[chart.steps.length - 1]}`;
      at.textContent = index === null ? last : `${chart.axis} ${chart.steps[index]}`;
      chart.series.forEach((series, i) => {
        values[i].textContent = format(index === null ? series.values.findLast((value) => value !== null) : series.values[index]);
      });
    }
    show(null);

    const entry = {
      draw() {
        entry.plot?.destroy();
        entry.plot = new uPlot(options(chart, plotted, show), layers(chart), plotted);
      },
    };
    plots.push(entry);
    new ResizeObserver(() => {
      if (entry.plot && plotted.clientWidth && plotted.clientWidth !== entry.plot.width)
        entry.plot.setSize({ width: plotted.clientWidth, height: 220 });
    }).observe(plotted);
    const caption = el("figcaption", {}, el("h3", {}, chart.title), el("p", {}, chart.caption));
    return el("figure", {}, caption, plotted, legend);
  }

  /** Columns for uPlot. Stacked layers become running sums, drawn from the highest down so that each stays visible. */
  function layers(chart) {
    if (!chart.is_stacked) return [chart.steps, ...chart.series.map((series) => series.values)];
    const sums = [];
    const running = chart.steps.map(() => 0);
    for (const series of chart.series) {
      series.values.forEach((value, i) => { running[i] += value ?? 0; });
      sums.push([...running]);
    }
    return [chart.steps, ...sums.reverse()];
  }

  function options(chart, target, onStep) {
    const muted = colour("--muted");
    const axis = { stroke: muted, font: `12px ${colour("--sans")}`, ticks: { show: false } };
    const grid = { stroke: colour("--line"), width: 1 };
    const format = formats[chart.unit];
    const label = chart.unit === "share" ? (value) => percent(value, value * 100 % 1 ? 1 : 0) : format;
    const drawn = chart.series.map((series, i) => {
      const stroke = series.kind === "rule" ? muted : colour(`--series-${i % 8}`);
      if (chart.is_stacked) {
        const paths = uPlot.paths.bars({ size: [0.86, 48], gap: 0 });
        return { fill: stroke, stroke, width: 0, paths, points: { show: false } };
      }
      if (series.kind === "rule") return { stroke, width: 1, dash: [5, 4], points: { show: false } };
      const points = series.kind === "points" || chart.steps.length === 1 ? { show: true, size: 7, fill: stroke } : { show: false };
      return { stroke, width: 1.75, spanGaps: true, points };
    });
    return {
      width: target.clientWidth || 320,
      height: 220,
      padding: [8, 8, 0, 0],
      legend: { show: false },
      cursor: {
        y: false,
        sync: { key: "steps", scales: ["x", null] },
        points: chart.is_stacked ? { show: false } : { size: 7, width: 1.5 },
      },
      scales: {
        x: { time: false, range: (_, low, high) => stepRange(chart, low, high) },
        y: { range: (_, low, high) => valueRange(chart, low, high) },
      },
      axes: [
        { ...axis, grid: { show: false }, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000], space: 44, size: 28, gap: 4 },
        { ...axis, grid, space: 34, size: widest, gap: 6, values: (_, ticks) => ticks.map(label) },
      ],
      series: [{}, ...(chart.is_stacked ? drawn.reverse() : drawn)],
      hooks: { setCursor: [(plot) => onStep(plot.cursor.idx ?? null)] },
    };
  }

  function stepRange(chart, low, high) {
    if (low === null) return [0, 1];
    if (chart.steps.length === 1) return [chart.steps[0] - 0.5, chart.steps[0] + 0.5];
    const pad = chart.is_stacked ? 0.5 : 0;
    return [low - pad, high + pad];
  }

  function valueRange(chart, low, high) {
    if (chart.bounds) return chart.bounds;
    if (low === null) return [0, 1];
    if (chart.is_stacked) return [0, high * 1.02 || 1];
    const pad = (high - low) * 0.08 || Math.abs(high) * 0.1 || 1;
    // Quantities that come near zero are shown down to it; others would be flattened by it.
    const floor = low >= 0 && low < 0.5 * high ? 0 : low >= 0 ? Math.max(0, low - pad) : low - pad;
    return [low === 0 && high === 0 ? 0 : floor, high + pad];
  }

  /** Room for the longest label of a vertical axis. */
  function widest(plot, labels, axisIndex, cycle) {
    const axis = plot.axes[axisIndex];
    if (cycle > 1) return axis._size;
    const longest = (labels ?? []).reduce((a, b) => (b.length > a.length ? b : a), "");
    return Math.ceil(6.8 * longest.length) + 12;
  }

  // --- head --------------------------------------------------------------------------------------------------------

  function head() {
    const facts = el("dl", { class: "facts" });
    for (const [label, value] of data.facts)
      facts.append(el("div", { class: value.length > 48 ? "wide" : "" }, el("dt", {}, label), el("dd", {}, value)));
    root.append(
      el("p", { class: "brand" }, "priml report"),
      el("h1", {}, data.title),
      el("p", { class: "headline" }, data.headline),
      el("p", { class: "details" }, data.details.join(" ")),
      el("nav", { "aria-label": "Contents" }, el("ul", { class: "contents" })),
      facts,
    );
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

  // --- time --------------------------------------------------------------------------------------------------------

  function time() {
    if (data.time === null) return;
    const { chart, shares, waterfalls } = data.time;
    const phases = shares.map((share) => share.phase);
    const parts = el("div", { class: "grid" });
    if (chart) parts.append(figure(chart));
    if (shares.length) parts.append(shareTable(shares));
    const empty = chart || shares.length ? null : el("p", { class: "absent" }, "No phase times were recorded.");
    section("Where the time went", "Wall-clock time per phase.", empty ?? parts, waterfall(waterfalls, phases));
  }

  function shareTable(shares) {
    const total = shares.reduce((sum, share) => sum + share.seconds, 0);
    const rows = shares.map((share, i) => el("tr", {},
      el("td", {}, el("span", { class: `swatch block s${i % 8}` }), share.phase),
      el("td", {}, seconds(share.seconds)),
      el("td", {}, percent(share.share))));
    rows.push(el("tr", {}, el("td", {}, "all"), el("td", {}, seconds(total)), el("td", {}, "100.0 %")));
    const titles = ["Phase", "Time", "Share"].map((title) => el("th", { scope: "col" }, title));
    const table = el("table", { class: "shares" }, el("thead", {}, el("tr", {}, ...titles)), el("tbody", {}, ...rows));
    return el("div", {}, el("h3", {}, "The whole run"), table);
  }

  function waterfall(waterfalls, phases) {
    const steps = Object.keys(waterfalls).map(Number).sort((a, b) => a - b);
    if (!steps.length) return null;
    const lanes = el("div", { class: "lanes" });
    const select = el("select", { "aria-label": "Step of the waterfall" });
    for (const step of steps) select.append(el("option", { value: step }, `step ${step}`));
    const draw = () => drawLanes(lanes, waterfalls[select.value], phases);
    select.value = steps[steps.length >> 1];
    select.addEventListener("change", draw);
    draw();
    const caption = el("figcaption", { class: "waterfall-head" },
      el("div", {}, el("h3", {}, "One step as it ran"), el("p", {}, "Each row is a role, each bar a phase.")), select);
    return el("figure", { class: "waterfall" }, caption, lanes);
  }

  function drawLanes(lanes, spans, phases) {
    const end = Math.max(...spans.map((span) => span.end), 1e-9);
    lanes.replaceChildren();
    for (const role of new Set(spans.map((span) => span.role))) {
      const lane = el("div", { class: "lane" });
      for (const span of spans.filter((one) => one.role === role)) {
        const known = phases.indexOf(span.phase);
        const label = `${span.phase}: ${seconds(span.end - span.start)}, from ${seconds(span.start)}`;
        const bar = el("span", { class: `s${known < 0 ? 6 : known % 8}`, title: label, role: "img", "aria-label": label });
        bar.style.left = `${100 * span.start / end}%`;
        bar.style.width = `${100 * (span.end - span.start) / end}%`;
        if ((span.end - span.start) / end > 0.12) bar.append(el("b", {}, span.phase));
        lane.append(bar);
      }
      lanes.append(el("span", { class: "role" }, role), lane);
    }
    const tenth = 10 ** Math.floor(Math.log10(end / 3));
    const every = [5, 2, 1].find((factor) => end / (factor * tenth) >= 3) * tenth;
    const ticks = Array.from({ length: Math.floor(end / every) + 1 }, (_, i) => i * every);
    lanes.append(scale(ticks.filter((tick) => tick < 0.97 * end).map((tick) => [tick / end, tick ? seconds(tick) : "0"])));
  }

  // --- responses ---------------------------------------------------------------------------------------------------

  const MEASURES = { process_rewards: "process reward", step_rewards: "reward of the step", advantages: "advantage" };
  const NUMBERS = [
    ["process_rewards", "process reward"], ["step_rewards", "reward of its step"], ["prm_logprobs", "PRM log-prob"], ["ref_logprobs", "reference log-prob"],
    ["old_logprobs", "policy log-prob"], ["sampler_logprobs", "sampler log-prob"], ["entropies", "entropy"],
    ["advantages", "advantage"],
  ];

  function responses() {
    const { responses: all, num_responses, num_steps, limits, per_step, is_outcome_only, lead } = data.rollouts;
    if (!all.length) {
      section("Responses", null, el("p", { class: "absent" }, "There are no responses to show."));
      return;
    }
    const steps = [...new Set(all.map((response) => response.step))];
    const measures = Object.keys(MEASURES).filter((name) => all.some((response) => response.numbers[name]));
    const state = { step: steps[steps.length - 1], measure: measures[0] };
    const list = el("div", { class: "responses" });
    const key = el("p", { class: "scale" });
    const draw = () => {
      drawKey(key, state.measure, limits[state.measure]);
      list.replaceChildren(...all.filter((response) => response.step === state.step)
        .map((response) => card(response, state.measure, limits[state.measure])));
    };
    const controls = el("div", { class: "controls" });
    if (steps.length > 1) controls.append(choice("Step", steps.map((step) => [step, String(step)]),
      state.step, (step) => { state.step = step; draw(); }));
    if (measures.length > 1) controls.append(choice("Colour by", measures.map((name) => [name, MEASURES[name]]),
      state.measure, (measure) => { state.measure = measure; draw(); }));
    draw();
    const what = is_outcome_only ? "There is no process reward in this run; colours show the advantage."
      : "Colours show what each token was paid by the process reward model.";
    section("Responses",
      (lead ?? `${all.length} of ${grouped.format(num_responses)} responses, up to ${per_step} from each of ${steps.length} of `
        + `${grouped.format(num_steps)} steps; prompts with right and wrong answers come first. ${what}`)
      + " Point at a token, tap it, or move with the arrow keys to see its numbers.",
      controls, key, list);
  }

  function drawKey(key, measure, limit) {
    key.replaceChildren();
    if (!measure) key.append("No numbers per token were recorded for these responses.");
    else if (!limit) key.append(`Every ${MEASURES[measure]} is exactly 0.`);
    else key.append(
      el("span", { class: "ends" }, `≤ ${MINUS}${number(limit)}`, el("span", { class: "ramp" }), `≥ +${number(limit)}`),
      `${MEASURES[measure]} · the same scale for all · `, "a bar | after a token ends a step");
    if (data.rollouts.responses.some((response) => response.observed.length)) {
      key.append(" · ", el("span", { class: "observed" }, "grey"), " is what the environment said: read, never paid");
    }
  }

  function card(response, measure, limit) {
    const { texts } = response;
    const verdict = texts.verdict ?? "undecided";
    const mark = { correct: "✓ correct", wrong: "✗ wrong", unlabelled: "not labelled" }[verdict] ?? "? undecided";
    const rewards = response.numbers.process_rewards;
    const facts = el("dl");
    const fact = (label, value) => {
      if (value !== null && value !== undefined && value !== "")
        facts.append(el("div", {}, el("dt", {}, label), el("dd", {}, String(value))));
    };
    fact("answer", "answer" in texts ? texts.answer ?? "none" : null);
    fact("gold", texts.gold);
    fact("reason", texts.reason);
    fact("filter status", response.filter_status?.replace("_", " "));
    if (response.outcome !== null && response.outcome !== 0 && response.outcome !== 1) fact("outcome", number(response.outcome));
    fact("tokens", grouped.format(response.num_tokens) + (texts.finish_reason === "length" ? ", cut at the limit" : ""));
    if (rewards && response.token_ids.length === response.num_tokens)
      fact("total reward", number(rewards.reduce((sum, reward) => sum + (reward ?? 0), 0)));
    const origin = [texts.problem_id, texts.source, response.sample === null ? null : `sample ${response.sample}`];
    const article = el("article", { class: `response ${verdict}` },
      el("header", {}, el("h3", {}, mark), el("span", { class: "origin" }, origin.filter(Boolean).join(" · "))), facts);
    if (texts.prompt) article.append(el("details", { open: texts.prompt.length < 160 },
      el("summary", {}, "Prompt"), el("div", { class: "text" }, texts.prompt)));
    if (!response.pieces && texts.response) article.append(el("div", { class: "text tokens" }, texts.response));
    article.append(tokenList(response, measure, limit));
    if (response.num_tokens > response.token_ids.length) article.append(el("p", { class: "cut" },
      `${grouped.format(response.num_tokens - response.token_ids.length)} more tokens are left out.`));
    return article;
  }

  /** Tokens in reading order. One tab stop; arrow keys move inside. */
  function tokenList(response, measure, limit) {
    // Where rewards are paid at every token, so does a mark after each: it would say nothing.
    const ends = new Set(response.step_ends.length < response.token_ids.length ? response.step_ends : []);
    const observed = new Set(response.observed);
    const values = response.numbers[measure];
    const list = el("div", { class: "text tokens", role: "group", "aria-label": "Tokens of the response" });
    response.token_ids.forEach((id, i) => {
      const piece = response.pieces?.[i];
      const node = el("span", { class: piece ? "t" : "t chip", tabindex: i === 0 ? 0 : -1, "data-i": i });
      if (piece) write(node, piece);
      else node.append(`#${id}`);
      if (ends.has(i)) node.classList.add("end");
      if (observed.has(i)) node.classList.add("observed");
      const value = values?.[i];
      if (value && limit) {
        node.classList.add(value > 0 ? "pos" : "neg");
        node.style.setProperty("--a", Math.min(1, Math.abs(value) / limit).toFixed(3));
      }
      list.append(node);
    });
    const open = (event) => {
      const node = event.target.closest?.(".t");
      if (node) showTip(node, response, Number(node.dataset.i), ends);
    };
    list.addEventListener("mouseover", open);
    list.addEventListener("focusin", open);
    list.addEventListener("click", open);
    list.addEventListener("mouseleave", hideTip);
    list.addEventListener("focusout", hideTip);
    list.addEventListener("scroll", onScroll);
    list.addEventListener("keydown", (event) => moveFocus(event, list));
    return list;
  }

  /** A token's text with its line breaks made visible. */
  function write(node, piece) {
    piece.split("\n").forEach((line, i) => {
      if (i) node.append(el("i", { "aria-hidden": "true" }, "↵"), "\n");
      node.append(line);
    });
  }

  function moveFocus(event, list) {
    const at = Number(event.target.dataset?.i ?? NaN);
    if (event.key === "Escape") hideTip();
    const target = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: list.children.length - 1 }[event.key];
    const next = list.children[target];
    if (!next) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  const tip = el("div", { class: "tip", role: "tooltip", id: "tip", hidden: true });
  let marked = null;

  function showTip(node, response, i, ends) {
    hideTip();
    marked = node;
    node.classList.add("on");
    node.setAttribute("aria-describedby", "tip");
    const piece = response.pieces?.[i];
    const rows = el("dl");
    const row = (label, value) => rows.append(el("dt", {}, label), el("dd", {}, value));
    row("id", String(response.token_ids[i]));
    row("position", `${i + 1} of ${response.num_tokens}`);
    if (response.observed.includes(i)) row("from", "the environment: not paid, not trained on");
    else for (const [name, label] of NUMBERS) {
      if (response.numbers[name]) row(label, number(response.numbers[name][i]));
    }
    if (ends.has(i)) row("ends step", String(response.step_ends.indexOf(i) + 1));
    tip.replaceChildren(el("p", { class: "token" }, piece ? JSON.stringify(piece) : `#${response.token_ids[i]}`), rows);
    tip.hidden = false;
    placeTip();
  }

  function placeTip() {
    const box = marked.getClientRects()[0] ?? marked.getBoundingClientRect();
    const below = box.bottom + 8;
    const fits = below + tip.offsetHeight < innerHeight - 8;
    tip.style.top = `${fits ? below : Math.max(8, box.top - tip.offsetHeight - 8)}px`;
    tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - tip.offsetWidth - 8))}px`;
  }

  /** The card follows a focused token (focusing may be what scrolled) and lets go of one that was only pointed at. */
  function onScroll() {
    if (marked && marked === document.activeElement) placeTip();
    else hideTip();
  }

  function hideTip() {
    marked?.classList.remove("on");
    marked?.removeAttribute("aria-describedby");
    marked = null;
    tip.hidden = true;
  }

  // --- the page ----------------------------------------------------------------------------------------------------

  function numbers() {
    if (!data.ranges.length) return;
    const titles = ["Metric", "First", "Last", "Lowest", "Highest"].map((title) => el("th", { scope: "col" }, title));
    const rows = data.ranges.map(({ key, first, last, low, high }) =>
      el("tr", {}, el("td", {}, key), ...[first, last, low, high].map((value) => el("td", {}, count(value)))));
    const table = el("table", {}, el("thead", {}, el("tr", {}, ...titles)), el("tbody", {}, ...rows));
    root.append(el("details", { class: "numbers" }, el("summary", {}, "Every recorded number"), el("div", { class: "scroll" }, table)));
  }

  head();
  if (!data.is_supervised) accuracy();
  for (const part of data.sections) {
    const grid = part.charts.length ? el("div", { class: "grid" }, ...part.charts.map(figure)) : null;
    const absent = part.missing.length ? el("p", { class: "absent" }, `Not recorded: ${part.missing.join(", ")}.`) : null;
    section(part.title, part.lead, grid, absent);
  }
  tables();
  if (!data.is_supervised) {
    time();
    responses();
  }
  numbers();
  root.append(el("footer", {}, data.written, " · charts by uPlot 1.6.32 (MIT), whose licence is in the source of this page"));
  root.querySelector(".contents").append(...contents.map((title) => el("li", {}, el("a", { href: `#${slug(title)}` }, title))));
  document.body.append(tip);

  const drawAll = () => plots.forEach((entry) => entry.draw());
  drawAll();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  addEventListener("scroll", onScroll, { passive: true });
  // Paper is white whatever the screen was.
  addEventListener("beforeprint", () => { document.documentElement.dataset.theme = "light"; drawAll(); });
  addEventListener("afterprint", () => { delete document.documentElement.dataset.theme; drawAll(); });
})();
