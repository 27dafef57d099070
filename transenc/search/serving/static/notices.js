// What stands where the hits would be.

import { RequestError } from "./api.js";
import { make } from "./dom.js";

/** Before the first query: what there is to search, from /info. */
export function makeWelcome(info) {
  const facts = [
    ["Documents", describeCount(info)],
    ["Bi-encoder", info.encoder || "unknown"],
    ["Reranker", info.rerankers.join(", ") || "none loaded; hits come in the bi-encoder’s order"],
    ["Index", describeKind(info)],
    ["Words", info.hybrid ? "indexed, for hybrid search" : "not indexed"],
    ["Filters", info.fields.length ? info.fields.map(({ key }) => key).join(", ") : "no metadata"],
    ["Generation", String(info.generation ?? "none")],
  ];
  const rows = facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)));
  return make("dl", { class: "colophon" }, ...rows);
}

/** No hit; `remove` takes the filters away. */
export function makeNothing(where, remove) {
  const count = where.length;
  const texts = ["The index is empty.", "No document fulfils the filter.", `No document fulfils all ${count} filters.`];
  const notice = make("div", { class: "notice" }, make("p", {}, texts[Math.min(count, 2)]));
  if (count) notice.append(makeRemoval(where, remove));
  return notice;
}

/** An error, with what may help: to `retry` when the server failed, to `remove` filters when it refused. */
export function makeError(error, { where, retry, remove }) {
  const isKnown = error instanceof RequestError;
  if (!isKnown) console.error(error);
  const text = make("bdi", {}, isKnown ? error.message : "Something in this page went wrong; reload it.");
  const notice = make("div", { class: "notice error", role: "alert" }, make("p", {}, text));
  if (isKnown && (error.status === 0 || error.status >= 500)) notice.append(makeButton("Try again", retry));
  else if (where.length) notice.append(makeRemoval(where, remove));
  return notice;
}

function makeRemoval(where, remove) {
  return makeButton(where.length === 1 ? "Remove the filter" : "Remove the filters", remove);
}

function makeButton(text, work) {
  const button = make("button", { type: "button", class: "plain" }, text);
  button.addEventListener("click", work);
  return button;
}

function describeCount({ documents, passages }) {
  const show = (value) => value.toLocaleString("en");
  const isSplit = (passages ?? documents) !== documents;
  return isSplit ? `${show(documents)} in ${show(passages)} passages` : show(documents);
}

function describeKind({ kind, "recall@10": recall }) {
  return (recall ?? null) === null ? (kind ?? "unknown") : `${kind}, recall@10 ${recall.toFixed(2)}`;
}
