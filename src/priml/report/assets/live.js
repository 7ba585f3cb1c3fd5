// What is recorded while the page is open: asked for every two seconds until the run is finished.
const RUNNING = 2000; // ms between questions while the page is seen
const HIDDEN = 15000;

function live(refreshRows) {
  if (!data.live || data.live.finished) return;
  const state = { cursor: data.live.cursor, tag: "", rollouts: data.table?.total ?? 0 };
  const known = new Set(data.ranges.map((range) => range.key));
  const said = el("p", { class: "live", role: "status" }, "live: the run is going on");
  root.querySelector(".headline").after(said);

  async function ask() {
    try {
      const answer = await fetch(`news?${new URLSearchParams({ after: state.cursor })}`, { headers: state.tag ? { "If-None-Match": state.tag } : {} });
      if (answer.status === 200) {
        state.tag = answer.headers.get("etag") ?? "";
        if (take(await answer.json())) return;
      } else if (answer.status !== 304) throw new Error(await answer.text());
    } catch (error) {
      said.textContent = `live: the server does not answer (${error.message}); asking again`;
    }
    setTimeout(ask, document.hidden ? HIDDEN : RUNNING);
  }

  /** Whether the page has to be made again: a new kind of number, a resumed run, or the end. */
  function take(news) {
    const fresh = (row) => Object.keys(row).some((key) => key !== "step" && !known.has(key));
    if (news.restarted || news.finished || news.metrics.some(fresh)) {
      location.reload();
      return true;
    }
    state.cursor = news.cursor;
    for (const row of news.metrics) plots.forEach((entry) => entry.add(row));
    if (news.metrics.length) said.textContent = `live: step ${news.metrics[news.metrics.length - 1].step}`;
    if (news.rollouts !== state.rollouts) {
      state.rollouts = news.rollouts;
      refreshRows();
    }
    return false;
  }

  setTimeout(ask, RUNNING);
}
