// An answer as one or two lists of hits.

import { formatScore, make, makeBar } from "./dom.js";
import { canFilter } from "./filters.js";
import { drawLines, makeLines } from "./lines.js";
import { appendMarked, appendPlain, cutSnippet, findKeys, splitPassage } from "./text.js";

let cards = 0; // so that every card's parts have ids of their own

/**
 * Show an answer of /search.
 *
 * `view` is the state of the page with the `limits` of the server and, while the reranked order is still to come,
 * `pending`. Clicks are left to the page: what does something when it is clicked says so in data-do.
 */
export function showHits(results, answer, view) {
  const keys = findKeys(view.query);
  const split = answer.reranked || view.pending;
  const known = new Map([...answer.hits, ...answer.others].map((hit) => [hit.id, hit]));
  const retrieved = split ? answer.retrieved.map((id) => known.get(id)).filter(Boolean) : answer.hits;
  const lists = [makeColumn("retrieved", retrieved, { ...view, keys, split, top: answer.hits.length })];
  if (answer.reranked) lists.push(makeColumn("reranked", answer.hits, { ...view, keys, split }));
  if (view.pending) lists.push(makePending(retrieved.length));
  results.replaceChildren(...lists);
  results.dataset.lists = String(lists.length);
  results.style.setProperty("--rows", String(Math.max(retrieved.length, answer.hits.length) + 1));
  if (answer.reranked) {
    results.insertBefore(makeLines(), results.lastChild);
    drawLines(results);
  }
}

/** Open or close a card; opened, it shows the whole text and all that is known about the document. */
export function toggleCard(card, isOpen) {
  const title = card.querySelector(".title");
  title.setAttribute("aria-expanded", String(isOpen));
  card.classList.toggle("open", isOpen);
  const whole = card.querySelector(".whole");
  whole.hidden = !isOpen;
  if (isOpen && !whole.hasChildNodes()) whole.append(...makeWhole(card.hit, card.keys));
}

/** Which part of the page's state holds the open cards of a list. */
export function nameState(order, isOneOfTwo) {
  return order === "retrieved" && isOneOfTwo ? "left" : "open";
}

function makeColumn(order, hits, view) {
  const [name, unit] = nameColumn(order, view);
  const list = make("ol", {}, ...hits.map((hit) => makeCard(order, hit, hits, view)));
  const title = make(
    "h2",
    {},
    make("span", { class: `dot ${order}`, "aria-hidden": "true" }),
    name,
    make("small", {}, unit),
  );
  return make("section", { class: `column ${order}`, "aria-label": name }, title, list);
}

function nameColumn(order, { hybrid }) {
  if (order === "reranked") return ["Reranked", "fused score"];
  return hybrid ? ["Bi-encoder and words", "fused ranks"] : ["Bi-encoder", "cosine"];
}

function makePending(count) {
  const rows = Array.from({ length: count }, () =>
    make("li", { class: "hit pending" }, make("div", { class: "ghost" })),
  );
  return make(
    "section",
    { class: "column reranked", "aria-hidden": "true" },
    make("h2", {}, make("span", { class: "dot reranked" }), "Reranking …"),
    make("ol", {}, ...rows),
  );
}

function makeCard(order, hit, hits, view) {
  const number = ++cards;
  const [, passage] = splitPassage(hit);
  const snippet = make("span");
  appendMarked(snippet, cutSnippet(passage, view.keys), view.keys);
  const title = make("button", {
    type: "button",
    class: "title",
    dir: "auto",
    "aria-expanded": "false",
    "aria-controls": `whole-${number}`,
    "data-do": "toggle",
  });
  if (hit.title.trim()) appendMarked(title, hit.title, view.keys);
  else title.append(snippet);
  const card = make(
    "li",
    { class: hit.title.trim() ? "hit" : "hit untitled" },
    make(
      "div",
      { class: "place" },
      make("span", { class: "rank" }, String(order === "reranked" ? hit.rank : hit.retrieved_rank)),
      makeMove(order, hit, view),
    ),
    make(
      "div",
      { class: "body" },
      make("h3", {}, title),
      hit.title.trim() ? make("p", { class: "passage", dir: "auto" }, snippet) : null,
      make("div", { class: "whole", id: `whole-${number}`, hidden: true }),
      makeTags(hit, view),
    ),
    makeScore(order, hit, hits, view),
  );
  Object.assign(card, { hit, keys: view.keys });
  if (view[nameState(order, view.split)].includes(hit.id)) toggleCard(card, true);
  return card;
}

/** How far a document has moved, and where it went when it is not in the other list. */
function makeMove(order, hit, { split, top }) {
  if (!split || hit.rerank_score === null) return null;
  const moved = hit.retrieved_rank - hit.rank;
  if (order === "retrieved") {
    if (hit.rank <= top) return null;
    return make(
      "span",
      { class: "move out" },
      `▼${-moved}`,
      make("span", { class: "unseen" }, ` reranked to ${hit.rank}`),
    );
  }
  if (moved === 0) return make("span", { class: "move same" }, "=", make("span", { class: "unseen" }, " not moved"));
  return make(
    "span",
    { class: moved > 0 ? "move up" : "move down" },
    `${moved > 0 ? "▲" : "▼"}${Math.abs(moved)}`,
    make("span", { class: "unseen" }, ` retrieved as ${hit.retrieved_rank}`),
  );
}

function makeScore(order, hit, hits, { hybrid }) {
  if (order === "reranked") {
    // 0 is the mean of all candidates; with few of them there are hits below.
    const scores = hits.map((each) => each.score);
    const [least, best] = [Math.min(0, ...scores), Math.max(...scores)];
    return make(
      "div",
      { class: "score", title: "Fused score: 0 is the average candidate" },
      make("b", {}, formatScore(hit.score, 2)),
      makeBar(best > least ? (hit.score - least) / (best - least) : 0, "reranked"),
      make("small", {}, `rerank ${formatScore(hit.rerank_score)}`),
    );
  }
  const scale = hybrid ? Math.max(...hits.map((each) => each.retrieval_score), 1e-9) : 1;
  return make(
    "div",
    {
      class: "score",
      title: hybrid ? "Reciprocal ranks of bi-encoder and BM25, fused" : "Cosine of query and passage",
    },
    make("b", {}, formatScore(hit.retrieval_score, hybrid ? 4 : 3)),
    makeBar(hit.retrieval_score / scale, "retrieved"),
  );
}

function makeTags(hit, { where, limits }) {
  const tags = Object.entries(hit.metadata).map(([key, value]) => {
    const condition = formatCondition(key, value);
    const parts = [make("span", { class: "key" }, ...makeText(key)), " ", ...makeText(formatValue(value))];
    const isFixed = condition === null || where.includes(condition) || where.length >= limits.max_where;
    if (isFixed) return make("li", { class: "tag" }, make("bdi", {}, ...parts));
    const what = { "data-do": "filter", "data-condition": condition, title: `Only ${condition}` };
    return make("li", {}, make("button", { type: "button", class: "tag", ...what }, make("bdi", {}, ...parts)));
  });
  return make("ul", { class: "tags" }, make("li", { class: "tag id" }, make("bdi", {}, ...makeText(hit.id))), ...tags);
}

function makeWhole(hit, keys) {
  const [before, passage, after] = splitPassage(hit);
  const text = make("div", { class: "text", dir: "auto", tabindex: "0", role: "group", "aria-label": "Whole text" });
  const isPart = before.trim() !== "" || after.trim() !== "";
  const found = make("span", isPart ? { class: "found", title: "The passage that was found" } : {});
  appendMarked(text, before, keys);
  appendMarked(text.appendChild(found), passage, keys);
  appendMarked(text, after, keys);
  const facts = [
    ["retrieved", `${formatScore(hit.retrieval_score, 4)}, rank ${hit.retrieved_rank}`],
    hit.rerank_score === null ? null : ["reranker", formatScore(hit.rerank_score, 4)],
    hit.rerank_score === null ? null : ["fused", `${formatScore(hit.score, 4)}, rank ${hit.rank}`],
  ];
  return [
    text,
    make(
      "dl",
      { class: "numbers" },
      ...facts.filter(Boolean).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))),
    ),
    make("button", { type: "button", class: "plain", "data-do": "compare" }, "Compare with the query"),
  ];
}

/** A condition that only documents with this value fulfil; null where the server has no way to write it. */
function formatCondition(key, value) {
  const isPlain = ["string", "number", "boolean"].includes(typeof value) && String(value).trim() === String(value);
  return isPlain && canFilter(key) ? `${key}=${value}` : null;
}

function formatValue(value) {
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

function makeText(text) {
  const holder = document.createDocumentFragment();
  appendPlain(holder, text);
  return [...holder.childNodes];
}
