// Responses as coloured tokens, and the card with the numbers of one token.
const MEASURES = { process_rewards: "process reward", step_rewards: "reward of the step", advantages: "advantage" };
const NUMBERS = [
  ["process_rewards", "process reward"], ["step_rewards", "reward of its step"], ["prm_logprobs", "PRM log-prob"], ["ref_logprobs", "reference log-prob"],
  ["old_logprobs", "policy log-prob"], ["sampler_logprobs", "sampler log-prob"], ["entropies", "entropy"],
  ["advantages", "advantage"],
];

/** Chosen responses as cards: the page of scores, and the strangest of a run. */
function responses() {
  const { responses: all, limits, lead } = data.rollouts;
  if (!all.length) {
    section("Responses", null, el("p", { class: "absent" }, "There are no responses to show."));
    return;
  }
  section("Responses", `${lead} Point at a token, tap it, or move with the arrow keys to see its numbers.`, ...cards(all, limits));
}

function strangest() {
  const { strange, limits, is_outcome_only: noPrm } = data.table;
  if (noPrm || !data.table.total) return;
  const none = "No wrong response was paid more than the mean of its prompt.";
  section("Wrong, but paid", strange.length
    ? "Wrong responses that were paid most above others to the same prompt, of the whole run, one of each problem: where verifier and "
      + "PRM disagree most, and what a policy would learn to repeat. Point at a token, tap it, or move with the arrow keys to see its numbers." : none,
    ...(strange.length ? cards(strange, limits, "Colour of these by") : []));
}

function cards(all, limits, legend = "Colour by") {
  const measures = Object.keys(MEASURES).filter((name) => all.some((response) => response.numbers[name]));
  const state = { measure: measures[0] };
  const list = el("div", { class: "responses" });
  const key = el("p", { class: "scale" });
  const draw = () => {
    drawKey(key, state.measure, limits[state.measure], all);
    list.replaceChildren(...all.map((response) => card(response, state.measure, limits[state.measure])));
  };
  const controls = el("div", { class: "controls" });
  if (measures.length > 1) controls.append(choice(legend, measures.map((name) => [name, MEASURES[name]]),
    state.measure, (measure) => { state.measure = measure; draw(); }));
  draw();
  return [controls, key, list];
}

function drawKey(key, measure, limit, all) {
  key.replaceChildren();
  if (!measure) key.append("No numbers per token were recorded for these responses.");
  else if (!limit) key.append(`Every ${MEASURES[measure]} is exactly 0.`);
  else key.append(
    el("span", { class: "ends" }, `≤ ${MINUS}${number(limit)}`, el("span", { class: "ramp" }), `≥ +${number(limit)}`),
    `${MEASURES[measure]} · the same scale for all · `, "a bar | after a token ends a step");
  if (all.some((response) => response.observed.length)) {
    key.append(" · ", el("span", { class: "observed" }, "grey"), " is what the environment said: read, never paid");
  }
}

function card(response, measure, limit, { prompt = true } = {}) {
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
  const origin = [response.row === null ? null : `step ${response.step}`, texts.problem_id, texts.source, response.sample === null ? null : `sample ${response.sample}`]
    .filter(Boolean).join(" · ");
  const place = { step: response.step, problem: texts.problem_id, sample: response.sample };
  const link = response.row === null ? origin : el("a", { href: linkTo(place) }, origin);
  const article = el("article", { class: `response ${verdict}` },
    el("header", {}, el("h3", {}, mark), el("span", { class: "origin" }, link)), facts);
  if (prompt && texts.prompt) article.append(el("details", { open: texts.prompt.length < 160 },
    el("summary", {}, "Prompt"), el("div", { class: "text", tabindex: 0 }, texts.prompt)));
  if (!response.pieces && texts.response) article.append(el("div", { class: "text tokens" }, texts.response));
  article.append(tokenList(response, measure, limit));
  if (response.num_tokens > response.token_ids.length) article.append(el("p", { class: "cut" },
    `${grouped.format(response.num_tokens - response.token_ids.length)} more tokens are left out.`));
  return article;
}

/** Tokens in reading order, those from `from` up to `to`. One tab stop; arrow keys move inside. */
function tokenList(response, measure, limit, from = 0, to = response.token_ids.length) {
  // Where rewards are paid at every token, so does a mark after each: it would say nothing.
  const ends = new Set(response.step_ends.length < response.token_ids.length ? response.step_ends : []);
  const observed = new Set(response.observed);
  const values = response.numbers[measure];
  const list = el("div", { class: "text tokens", role: "group", "aria-label": "Tokens of the response" });
  response.token_ids.slice(from, to).forEach((id, place) => {
    const i = from + place;
    const piece = response.pieces?.[i];
    const node = el("span", { class: piece ? "t" : "t chip", tabindex: place === 0 ? 0 : -1, "data-i": i });
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
  list.addEventListener("click", (event) => {
    open(event);
    const node = event.target.closest?.(".t");
    // The address names the token, so that it can be sent to somebody.
    if (node && response.row !== null)
      history.replaceState(null, "", linkTo({ step: response.step, problem: response.texts.problem_id, sample: response.sample }, node.dataset.i));
  });
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
  if (event.key === "Escape") hideTip();
  const { nextElementSibling, previousElementSibling } = event.target;
  const next = { ArrowRight: nextElementSibling, ArrowLeft: previousElementSibling, Home: list.firstElementChild, End: list.lastElementChild }[event.key];
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
