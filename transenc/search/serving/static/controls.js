// Switches, numbers and filters above the results.

import { make } from "./dom.js";
import { showFilters } from "./filters.js";

const at = (id) => document.getElementById(id);

/** Show what `state` says, as far as the server of `info` can do it; `filters` is what `showFilters` takes. */
export function showControls(info, state, filters) {
  const { limits } = info;
  at("rerank-group").hidden = !info.rerankers.length;
  at("hybrid-group").hidden = !info.hybrid;
  at("rerank").checked = state.rerank;
  at("hybrid").checked = state.hybrid;
  at("candidates").disabled = at("weight").disabled = !state.rerank;
  fillSelect(at("top-k"), atMost([5, 10, 20, 50, 100], limits.max_top_k), state.topK);
  fillSelect(at("candidates"), atMost([20, 50, 100, 200], limits.max_candidates), state.candidates);
  fillSelect(at("weight"), [null, 0, 0.25, 0.5, 0.75, 1], state.weight);
  showFilters(at("filters"), { where: state.where, fields: info.fields, limit: limits.max_where, ...filters });
}

/** Call `ask` with the part of the state that someone changed here. */
export function followControls(ask) {
  const follow = (id, read) => at(id).addEventListener("change", ({ target }) => ask(read(target)));
  follow("top-k", ({ value }) => ({ topK: Number(value) }));
  follow("candidates", ({ value }) => ({ candidates: Number(value) }));
  follow("weight", ({ value }) => ({ weight: value === "null" ? null : Number(value) }));
  follow("rerank", ({ checked }) => ({ rerank: checked }));
  follow("hybrid", ({ checked }) => ({ hybrid: checked }));
}

function atMost(values, limit) {
  return values.filter((value) => value <= limit);
}

/** What stands in the address may be none of the usual values. */
function fillSelect(select, values, current) {
  const all = values.includes(current) ? values : [...values, current].sort((one, other) => one - other);
  select.replaceChildren(...all.map((value) => make("option", { value: String(value) }, String(value ?? "auto"))));
  select.value = String(current);
}
