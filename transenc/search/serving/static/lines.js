// Lines between the two places of the same document.

import { makeShape } from "./dom.js";

const INSET = 16; // px between the columns and the ends of the lines

/** The drawing between the columns; `drawLines` fills it. */
export function makeLines() {
  return makeShape("svg", { class: "lines", "aria-hidden": "true" });
}

/** Draw the lines for where the cards are now. */
export function drawLines(results) {
  const svg = results.querySelector("svg.lines");
  if (!svg || svg.getClientRects().length === 0) return;
  const { top, width, height } = svg.getBoundingClientRect();
  const place = (card) => {
    const rank = card.querySelector(".rank").getBoundingClientRect();
    return (rank.top + rank.bottom) / 2 - top;
  };
  const [left, right] = ["retrieved", "reranked"].map((order) => findCards(results, order));
  const lines = [];
  for (const [id, card] of right) {
    const from = left.get(id);
    if (from) lines.push(makeLine(card, place(from), place(card), width));
    else lines.push(makeEnd(card, place(card), width, height, width));
  }
  for (const [id, card] of left) {
    if (!right.has(id)) lines.push(makeEnd(card, place(card), 0, height, width));
  }
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren(makeGradient(width), ...lines);
}

/** Bring out the two cards and the line of one document; null: none. */
export function lightUp(results, id) {
  results.classList.toggle("has-lit", id !== null);
  for (const each of results.querySelectorAll(".hit, .line")) {
    each.classList.toggle("lit", id !== null && (each.hit?.id ?? each.documentId) === id);
  }
}

/** The cards of one order by the id of their document. */
export function findCards(results, order) {
  return new Map(
    [...results.querySelectorAll(`.column.${order} .hit`)]
      .filter((card) => card.hit)
      .map((card) => [card.hit.id, card]),
  );
}

function makeLine(card, from, to, width) {
  const { rank, retrieved_rank: before } = card.hit;
  const bend = width / 2;
  return finish(card, rank === before ? "line same" : "line", [
    makeShape("path", {
      d: `M${INSET} ${from}C${bend} ${from} ${bend} ${to} ${width - INSET} ${to}`,
      stroke: "url(#fade)",
    }),
    makeShape("circle", { class: "retrieved", cx: INSET, cy: from, r: 3 }),
    makeShape("circle", { class: "reranked", cx: width - INSET, cy: to, r: 3 }),
  ]);
}

/** For a document that is in one list only: a line that leaves at the foot. */
function makeEnd(card, at, side, height, width) {
  const start = side === 0 ? INSET : width - INSET;
  const [bend, end] = [width / 2, side === 0 ? width * 0.62 : width * 0.38];
  return finish(card, "line cut", [
    makeShape("path", {
      d: `M${start} ${at}C${bend} ${at} ${end} ${(at + height) / 2} ${end} ${height}`,
      stroke: "url(#fade)",
    }),
    makeShape("circle", { class: side === 0 ? "retrieved" : "reranked", cx: start, cy: at, r: 3 }),
  ]);
}

function finish(card, name, shapes) {
  const line = makeShape("g", { class: name }, ...shapes);
  line.documentId = card.hit.id;
  return line;
}

// In the units of the drawing: the box of a level line has no height, and a gradient in it would not be drawn.
function makeGradient(width) {
  return makeShape(
    "linearGradient",
    { id: "fade", gradientUnits: "userSpaceOnUse", x1: 0, y1: 0, x2: width, y2: 0 },
    makeShape("stop", { class: "retrieved", offset: "0.1" }),
    makeShape("stop", { class: "reranked", offset: "0.9" }),
  );
}
