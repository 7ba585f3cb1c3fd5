// Curves over steps, drawn by uPlot.
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
    /** The numbers of one more step, or of one that was written again. */
    add(row) {
      if (!chart.series.some((series) => series.key in row)) return;
      let place = chart.steps.indexOf(row.step);
      if (place < 0) place = chart.steps.push(row.step) - 1;
      for (const series of chart.series)
        series.values[place] = series.kind === "rule" ? series.values[0] : row[series.key] ?? null;
      entry.plot.setData(layers(chart));
      plotted.setAttribute("aria-label", describe(chart));
      show(null);
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
