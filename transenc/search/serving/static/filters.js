// Conditions on metadata: chips for those that hold, and a row to add one.

import { make } from "./dom.js";
import { appendPlain } from "./text.js";

const OPERATORS = { "=": "is", "!=": "is not", ">=": "at least", "<=": "at most", ">": "above", "<": "below" };
const SIGNS = { "!=": "≠", ">=": "≥", "<=": "≤" };

/**
 * Show the chips of `where` and, up to `limit` of them, the way to add one.
 *
 * `add` and `remove` get a condition, `setAdding` whether the row is wanted. A row that is open already stays, with
 * what has been typed into it.
 */
export function showFilters(place, { where, fields, limit, isAdding, add, remove, setAdding }) {
  const chips = where.map((condition) => makeChip(condition, () => remove(condition)));
  const list = make("ul", { class: "chips" }, ...chips);
  const usable = fields.filter(({ key }) => canFilter(key));
  if (!usable.length || where.length >= limit) return place.replaceChildren(list);
  if (isAdding) {
    const open = place.querySelector(".editor");
    if (open) return place.querySelector(".chips").replaceWith(list);
    return place.replaceChildren(
      list,
      makeEditor(usable, add, () => setAdding(false)),
    );
  }
  const button = make("button", { type: "button", class: "plain add" }, "+ Filter");
  button.addEventListener("click", () => setAdding(true));
  return place.replaceChildren(list, button);
}

/** Whether a condition can name this key: the server takes the first operator for the end of it. */
export function canFilter(key) {
  return key !== "" && key.trim() === key && !/[=<>]/.test(key);
}

function makeChip(condition, remove) {
  const text = make("bdi");
  appendPlain(
    text,
    condition.replace(/!=|>=|<=|=|>|</, (sign) => ` ${SIGNS[sign] ?? sign} `),
  );
  const button = make("button", { type: "button", "aria-label": `Remove the filter ${condition}` }, "×");
  button.addEventListener("click", remove);
  return make("li", { class: "chip" }, text, button);
}

function makeEditor(fields, add, close) {
  const keys = fields.map((field) => make("option", { value: field.key }, field.key));
  const signs = Object.entries(OPERATORS).map(([sign, name]) => make("option", { value: sign }, name));
  const key = make("select", { "aria-label": "Field" }, ...keys);
  const operator = make("select", { "aria-label": "Condition" }, ...signs);
  const value = make("input", { type: "text", "aria-label": "Value", list: "values", autocomplete: "off" });
  const values = make("datalist", { id: "values" });
  const suit = () => {
    const field = fields.find((each) => each.key === key.value);
    operator.value = field.numeric ? ">=" : "=";
    value.inputMode = field.numeric ? "decimal" : "text";
    value.placeholder = field.examples.slice(0, 2).join(", ");
    values.replaceChildren(...field.examples.map((example) => make("option", { value: String(example) })));
  };
  key.addEventListener("change", suit);
  suit();
  const submit = make("button", { class: "plain" }, "Add");
  const cancel = make("button", { type: "button", class: "plain" }, "Cancel");
  cancel.addEventListener("click", close);
  const row = make("form", { class: "editor" }, key, operator, value, values, submit, cancel);
  row.addEventListener("submit", (event) => {
    event.preventDefault();
    if (value.value.trim()) add(`${key.value}${operator.value}${value.value.trim()}`);
  });
  row.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    close();
  });
  return row;
}
