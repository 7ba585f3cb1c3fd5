// Where the time went.
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
