// The keyboard. Titles of hits are buttons, so that Enter opens them without help.

import { recall, remember } from "./memory.js";
import { findCards } from "./lines.js";

export function setUpKeys({ query, results, dialog, opener, letters, change, clear }) {
  letters.checked = recall("letters") !== "off";
  letters.addEventListener("change", () => remember("letters", letters.checked ? "on" : "off"));
  opener.addEventListener("click", () => dialog.showModal());
  dialog.addEventListener("click", ({ target }) => target === dialog && dialog.close());

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || dialog.open) return;
    const action = findAction(event);
    if (action) action(event);
  });

  function findAction({ key, target }) {
    const card = target.closest?.(".hit");
    if (target === query) return { ArrowDown: step(1), Escape: leave }[key];
    if (target.matches?.("input:not([type=checkbox]), textarea, select, .text")) return undefined;
    const arrows = {
      ArrowDown: step(1),
      ArrowUp: step(-1),
      ArrowLeft: cross("retrieved"),
      ArrowRight: cross("reranked"),
    };
    if (card && key in arrows) return arrows[key];
    if (key === "Escape") return card ? close : back;
    const signs = { "/": back, "?": () => dialog.showModal(), j: step(1), k: step(-1) };
    return letters.checked ? signs[key] : undefined;
  }

  /** Go to the next or previous hit of the column, or from the query to the first. */
  function step(by) {
    return (event) => {
      const titles = [...results.querySelectorAll(".title")].filter((title) => title.getClientRects().length);
      const here = event.target.closest(".hit")?.querySelector(".title");
      const column = here?.closest(".column") ?? titles.at(-1)?.closest(".column");
      const own = titles.filter((title) => title.closest(".column") === column);
      const next = here ? own.indexOf(here) + by : 0;
      if (!own.length || (!here && by < 0)) return;
      event.preventDefault();
      if (next < 0) query.focus();
      else own[Math.min(next, own.length - 1)].focus();
    };
  }

  /** Go to the same document in the other order; a narrow screen shows that order then. */
  function cross(order) {
    return (event) => {
      const id = event.target.closest(".hit").hit?.id;
      const other = findCards(results, order).get(id);
      if (!other) return;
      event.preventDefault();
      if (!other.getClientRects().length) change({ order });
      other.querySelector(".title").focus();
    };
  }

  function back(event) {
    if (query.getClientRects().length === 0) return;
    event.preventDefault();
    query.focus();
    query.select();
  }

  function close(event) {
    const title = event.target.closest(".hit").querySelector(".title");
    if (title.getAttribute("aria-expanded") !== "true") return back(event);
    title.click();
    title.focus();
  }

  function leave(event) {
    event.preventDefault();
    if (query.value) clear();
    else query.blur();
  }
}
