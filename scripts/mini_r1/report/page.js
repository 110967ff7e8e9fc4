"use strict";
// The sample browser. Texts reach the page as text nodes only (`append`, `textContent`): what a model wrote is never markup.
const $ = id => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// ---- the marks in a text ------------------------------------------------------------------------------------------

const patterns = Object.fromEntries(Object.entries(JSON.parse($("patterns").textContent))
  .map(([name, text]) => [name, new RegExp(text, "gim")]));
const places = (pattern, text, name) => [...text.matchAll(pattern)].map(m => [m.index, m.index + m[0].length, name]);

// Splits a text at [start, end, class] places in their order, which do not overlap, and wraps each of them.
function wrap(parent, text, marked, inner = (target, part) => target.append(part)) {
  let done = 0;
  for (const [start, end, name] of marked) {
    inner(parent, text.slice(done, start));
    const span = element("span", {class: name});
    inner(span, text.slice(start, end));
    parent.append(span);
    done = end;
  }
  inner(parent, text.slice(done));
}

function markedText(text) {
  const pre = element("pre", {tabindex: 0});
  // The same bounds as `responses.thinking`.
  const start = text.includes("<think>") ? text.indexOf("<think>") + 7 : 0;
  const close = text.indexOf("</think>", start), answer = text.indexOf("<answer>", start);
  const end = close >= 0 ? close : answer >= 0 ? answer : text.length;
  const reasoning = text.slice(start, end), attempts = [];
  let from = 0;
  for (const [stop, next] of [...places(patterns.clauseEnd, reasoning), [reasoning.length, 0]]) {
    const clause = reasoning.slice(from, stop);
    if (places(patterns.result, clause).length) attempts.push([from + clause.search(/\S/), stop, "attempt"]);
    from = next;
  }
  const tags = part => wrap(pre, part, places(/<\/?(?:think|answer)>/g, part, "tag"));
  tags(text.slice(0, start));
  wrap(pre, reasoning, attempts, (target, part) => wrap(target, part, places(patterns.correction, part, "turn")));
  tags(text.slice(end));
  return pre;
}

// ---- filters ------------------------------------------------------------------------------------------------------

const packs = [];  // per run, parsed when it is first looked at
let pack, lower, chosen = [];  // the run on show, its texts in lower case once they are searched, the matching samples

function openRun(run) {
  pack = packs[run] ??= JSON.parse($(`samples-${run}`).textContent);
  lower = null;
  const choices = (id, names) => $(id).replaceChildren(element("option", {value: ""}, "all"),
    ...[...new Set(names)].map(name => element("option", {value: name}, name)));
  choices("split", pack.samples.map(sample => sample.split));
  choices("reason", pack.samples.map(sample => sample.reason));
  choices("stratum", pack.strata);
  choices("puzzle", []);
  $("stratum").parentElement.hidden = !pack.strata.length;
  // Those puzzles first that were seen at most steps; nobody reads a longer menu.
  const seen = pack.puzzles.map(() => new Set());
  for (const sample of pack.samples) seen[sample.puzzle].add(sample.step);
  const often = [...seen.keys()].filter(i => seen[i].size > 1).sort((a, b) => seen[b].size - seen[a].size);
  for (const i of often.slice(0, 200)) addPuzzle(i, `, ${seen[i].size} steps`);
  $("from").placeholder = pack.samples[0]?.step ?? "";
  $("to").placeholder = pack.samples.at(-1)?.step ?? "";
  $("note").replaceChildren(...pack.notes.map(note => element("p", {class: "soft"}, note)));
  select();
}

const addPuzzle = (i, remark = "") => $("puzzle").append(element("option", {value: i}, pack.puzzles[i] + remark));

function select() {
  const from = Number($("from").value), to = $("to").value === "" ? Infinity : Number($("to").value);
  const [split, reason, stratum, puzzle] = ["split", "reason", "stratum", "puzzle"].map(id => $(id).value);
  const text = $("text").value.toLowerCase();
  if (text) lower ??= pack.samples.map(sample => sample.text.toLowerCase());
  chosen = pack.samples.filter((sample, i) => sample.step >= from && sample.step <= to &&
    (!split || sample.split === split) && (!reason || sample.reason === reason) &&
    (!puzzle || sample.puzzle === Number(puzzle)) && (!stratum || pack.strata[sample.puzzle] === stratum) &&
    (!text || lower[i].includes(text)));
  if ($("order").value === "last") chosen.reverse();
  goTo(0);
}

// ---- what is on show ----------------------------------------------------------------------------------------------

const pageSize = () => $("puzzle").value === "" ? 12 : 1;  // one puzzle is stepped through sample by sample
const verdictClass = sample => sample.reason === "correct" ? "correct" : "";

function goTo(page) {
  $("page").value = page;
  show();
}

function show() {
  const size = pageSize(), pages = Math.ceil(chosen.length / size);
  $("page").max = Math.max(0, pages - 1);
  const page = Number($("page").value), first = page * size, part = chosen.slice(first, first + size);
  $("back").disabled = page === 0;
  $("on").disabled = page >= pages - 1;
  const total = pack.samples.length, most = chosen.length < total ? ` (of ${total} in all)` : "";
  $("count").textContent = chosen.length ? `${first + 1}–${first + part.length} of ${chosen.length} samples${most}` :
    total ? `no sample fits (of ${total} in all)` : "this run kept no samples yet";
  $("samples").className = size === 1 ? "samples one" : "samples";
  $("samples").replaceChildren(...part.map(sampleCard));
  $("timeline").replaceChildren(...(size > 1 ? [] : chosen.slice(0, 400).map((sample, place) => {
    const attributes = {type: "button", class: verdictClass(sample), "aria-pressed": place === page};
    const button = element("button", attributes, `step ${sample.step}`);
    button.onclick = () => goTo(place);
    return button;
  })));
}

function sampleCard(sample) {
  const verdict = sample.reason.replaceAll("_", " ") + (sample.value === null ? "" : `, comes to ${sample.value}`) +
    (sample.format === 1 ? "" : ", wrong format");
  const header = element("header", {}, element("b", {}, pack.puzzles[sample.puzzle]),
    element("span", {class: `verdict ${verdictClass(sample)}`}, verdict),
    element("span", {class: "soft"}, `step ${sample.step}, ${sample.split.replace("_", "-")}, ${sample.tokens} tokens`));
  const card = element("article", {class: "card sample"}, header, markedText(sample.text));
  if ($("puzzle").value === "") {
    const button = element("button", {type: "button"}, "this puzzle through time");
    button.onclick = () => {
      const id = String(sample.puzzle);
      if (![...$("puzzle").options].some(option => option.value === id)) addPuzzle(id);
      for (const filter of ["from", "to", "split", "reason", "stratum", "text"]) $(filter).value = "";
      $("puzzle").value = id;
      select();
      $("browser").scrollIntoView();
    };
    card.append(button);
  }
  return card;
}

// The samples stand below this script and may be many: the page is painted before they are parsed.
addEventListener("DOMContentLoaded", () => requestAnimationFrame(() => setTimeout(() => {
  $("filters").addEventListener("input", event => event.target.id === "run" ? openRun(Number(event.target.value)) : select());
  $("filters").addEventListener("submit", event => event.preventDefault());
  $("page").addEventListener("input", show);
  $("back").onclick = () => goTo(Number($("page").value) - 1);
  $("on").onclick = () => goTo(Number($("page").value) + 1);
  openRun(0);
})));
