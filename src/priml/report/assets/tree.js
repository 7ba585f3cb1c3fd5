// The responses to one prompt as a tree: what they share is drawn once, and branches where they part.

/** `members` share the tokens before `from`; the node covers those up to `to`, and `children` what comes after. */
function partings(members, from) {
  const [first] = members;
  let to = from;
  const shares = (i) => members.every((one) => i < one.token_ids.length && one.token_ids[i] === first.token_ids[i]);
  while (shares(to)) to++;
  const byNext = new Map();
  for (const one of members) {
    const next = one.token_ids[to] ?? null;
    byNext.set(next, [...(byNext.get(next) ?? []), one]);
  }
  const ended = byNext.get(null) ?? [];
  byNext.delete(null);
  return { members, from, to, ended, children: [...byNext.values()].map((some) => partings(some, to)) };
}

function tree(group, measure, limit, place) {
  const whole = partings(group, 0);
  const distinct = new Set(group.map((one) => one.token_ids.join(" "))).size;
  const title = `${group.length} responses to this prompt, ${distinct} different`;
  return el("figure", { class: "tree" }, el("figcaption", {}, el("h4", {}, title),
    el("p", {}, "What they share stands once; each branch ends in its verdict. The numbers are the process reward paid up to there.")),
    el("ul", {}, ...nodes(whole, measure, limit, place)));
}

function nodes(node, measure, limit, place) {
  // A shared beginning without a token is no node.
  const inner = [...node.children.flatMap((child) => nodes(child, measure, limit, place))];
  if (node.to === node.from && !node.ended.length) return inner;
  const [first] = node.members;
  const item = el("li", {}, el("div", { class: "run" }, tokenList(first, measure, limit, node.from, node.to), tally(node, place)));
  if (inner.length) item.append(el("ul", {}, ...inner));
  return [item];
}

/** How many of a branch are right, what was paid so far, and for those that end here the verdict as a link. */
function tally(node, place) {
  const [first] = node.members;
  const rewards = first.numbers.process_rewards;
  const paid = rewards ? `${signed(sum(rewards.slice(0, node.to)))} ` : "";
  if (!node.ended.length) {
    const right = node.members.filter((one) => one.texts.verdict === "correct").length;
    return el("span", { class: "tally" }, `${paid}· ${right} of ${node.members.length} right`);
  }
  return el("span", { class: "tally" }, paid, ...node.ended.map((one) => el("a", {
    href: linkTo({ step: one.step, problem: one.texts.problem_id, sample: one.sample }),
    class: one.texts.verdict, "aria-current": one.sample === place.sample ? "true" : null,
  }, `${{ correct: "✓", wrong: "✗" }[one.texts.verdict] ?? "?"} ${one.sample}${one.num_tokens > one.token_ids.length ? " …" : ""}`)));
}

function sum(values) {
  return values.reduce((total, value) => total + (value ?? 0), 0);
}

function signed(x) {
  return x > 0 ? `+${number(x)}` : number(x);
}
