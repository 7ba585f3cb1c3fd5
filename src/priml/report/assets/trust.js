// Whether the process reward model deserves trust, and what it pays for.
function trust() {
  const card = data.table.trust;
  if (!card) {
    if (!data.table.is_outcome_only && data.table.total)
      section("Can the PRM be trusted?", null, el("p", { class: "absent" },
        "Nothing can be said yet: no response was paid, or all of them are right, or all wrong. At step 1 a PRM that equals its reference pays exactly 0: this is as it should be."));
    return;
  }
  const span = ({ low, high }) => `${low.toFixed(3)} to ${high.toFixed(3)}`;
  const rows = [
    ["right above wrong, same prompt", card.pairs.mean.toFixed(3), span(card.pairs), "0.5"],
    ["AUC, all prompts together", card.auc.mean.toFixed(3), span(card.auc), "0.5"],
    ["pay against length, same outcome", card.length === null ? "all of one length" : number(card.length), "", "0"],
  ].map((cells) => el("tr", {}, ...cells.map((cell) => el("td", {}, cell))));
  const titles = ["", "Value", "95\u00a0% interval", "Means nothing"].map((title) => el("th", { scope: "col" }, title));
  titles[0] = el("td");
  const table = el("table", {}, el("thead", {}, el("tr", {}, ...titles)), el("tbody", {}, ...rows));
  const advice = card.advice.length ? el("ul", { class: "advice" }, ...card.advice.map((line) => el("li", {}, line))) : null;
  const [first, last] = card.steps;
  const left = el("div", {}, el("p", { class: "verdict" }, card.sentence), advice, el("div", { class: "scroll", tabindex: 0 }, table));
  const paid = el("div", { class: "patterns" });
  section("Can the PRM be trusted?",
    `From the ${grouped.format(card.responses)} responses that it paid in steps ${first} to ${last}. A tie counts one half.`,
    el("div", { class: "grid" }, left, figure(card.reliability)), paid);
  patterns(paid);
}

async function patterns(holder) {
  let found;
  try {
    found = await makeSource(data.table).patterns();
  } catch (error) {
    holder.replaceChildren(el("p", { class: "absent" }, `The best paid runs of tokens did not come: ${error.message}`));
    return;
  }
  if (!found?.shown.length) return;
  const rows = found.shown.map((one) => el("tr", { class: one.paid > 0 && one.lift <= 0 ? "suspect" : "" },
    el("td", {}, el("code", {}, JSON.stringify(one.text))), el("td", {}, signed(one.paid)),
    el("td", {}, `${one.lift > 0 ? "+" : ""}${(100 * one.lift).toFixed(1).replace("-", MINUS)}`), el("td", {}, grouped.format(one.responses))));
  const titles = ["Three tokens", "Mean pay", "Points right", "Responses"].map((title) => el("th", { scope: "col" }, title));
  holder.append(el("h3", {}, "What is paid most"),
    el("p", { class: "lead" }, `Three tokens in a row with the highest mean pay in steps ${found.steps[0]} to ${found.steps[1]}. Points right: how much more `
      + "often the responses with them are right than all responses to the same prompts. Paid, but not right more often (marked): what a policy learns to repeat for nothing."),
    el("div", { class: "scroll", tabindex: 0 }, el("table", {}, el("thead", {}, el("tr", {}, ...titles)), el("tbody", {}, ...rows))));
}
