// Two sentences: both forms' scores, and which tokens the bi-encoder sees as alike.

import { formatScore, make, makeBar, makeShape } from "./dom.js";
import { appendPlain } from "./text.js";

/** Show an answer of /similarity. */
export function showComparison(place, answer) {
  const parts = [makeScores(answer)];
  if (answer.tokens1.length && answer.tokens2.length) parts.push(makeAlignment(answer));
  place.replaceChildren(...parts);
  drawMatches(place);
}

/** Draw the lines between the tokens for where they are now. */
export function drawMatches(place) {
  const svg = place.querySelector("svg.lines");
  if (!svg || svg.getClientRects().length === 0) return;
  const { top, width, height } = svg.getBoundingClientRect();
  const [left, right] = [...place.querySelectorAll(".tokens")].map((list) =>
    [...list.children].map((token) => {
      const box = token.getBoundingClientRect();
      return (box.top + box.bottom) / 2 - top;
    }),
  );
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const bend = width / 2;
  svg.replaceChildren(
    ...svg.matches.map(({ one, two, score, isMutual }) => {
      const line = makeShape("path", {
        class: isMutual ? "match mutual" : "match",
        d: `M0 ${left[one]}C${bend} ${left[one]} ${bend} ${right[two]} ${width} ${right[two]}`,
        "stroke-width": (0.75 + 3.25 * Math.max(0, score) ** 2).toFixed(2),
        "stroke-opacity": (0.15 + 0.85 * Math.max(0, score) ** 2).toFixed(2),
      });
      Object.assign(line, { one, two });
      return line;
    }),
  );
}

function makeScores({ bi, cross, aligned }) {
  const scores = [
    ["Bi-encoder", "cosine of two vectors, each sentence read alone", bi, "retrieved"],
    ["Reranker", cross === null ? "none is loaded" : "what orders the hits anew", cross, "reranked"],
    ["Tokens", "mean best match, both ways", aligned, "tokens-bar"],
  ];
  return make(
    "dl",
    { class: "readouts" },
    ...scores.map(([name, note, value, kind]) =>
      make(
        "div",
        {},
        make("dt", {}, name),
        make(
          "dd",
          {},
          make("b", {}, value === null ? "–" : formatScore(value)),
          makeBar(value ?? 0, kind),
          make("small", {}, note),
        ),
      ),
    ),
  );
}

function makeAlignment({ tokens1, tokens2, alignment, truncated }) {
  const matches = findMatches(alignment);
  const svg = makeShape("svg", { class: "lines", "aria-hidden": "true" });
  svg.matches = matches;
  const best = (own, other, find) => own.map((token, at) => makeToken(token, describe(find(at), other)));
  const bestOfRow = (row) => findLargest(alignment[row]);
  const bestOfColumn = (column) => findLargest(alignment.map((row) => row[column]));
  const pairs = make(
    "div",
    { class: "pairs" },
    make("ol", { class: "tokens", "aria-label": "Tokens of sentence 1" }, ...best(tokens1, tokens2, bestOfRow)),
    svg,
    make("ol", { class: "tokens", "aria-label": "Tokens of sentence 2" }, ...best(tokens2, tokens1, bestOfColumn)),
  );
  const readout = make("p", { class: "readout" }, truncated ? "Only the first tokens of each sentence are shown." : "");
  const map = makeMap(tokens1, tokens2, alignment);
  const section = make(
    "section",
    { class: "alignment", "aria-labelledby": "alignment-title" },
    make(
      "h2",
      { id: "alignment-title" },
      "Token alignment ",
      make("small", {}, "cosine of token vectors; a line to each token's best match"),
    ),
    make("div", { class: "alignment-views" }, pairs, make("div", { class: "map" }, map, readout)),
  );
  followPointer(section, pairs, map, readout, { tokens1, tokens2, alignment });
  return section;
}

function makeMap(tokens1, tokens2, alignment) {
  const cell = (score, row, column) => {
    const place = make("td", {}, make("span", { class: "unseen" }, formatScore(score, 2)));
    place.style.setProperty("--share", String(Math.max(0, score)));
    Object.assign(place, { row, column });
    return place;
  };
  const table = make(
    "table",
    { class: tokens2.length > 24 || tokens1.length > 40 ? "fine" : null },
    make(
      "caption",
      { class: "unseen" },
      "Cosine of every token of sentence 1 (rows) with every token of sentence 2 (columns)",
    ),
    make("thead", {}, make("tr", {}, make("td"), ...tokens2.map((token) => makeHead(token, "col")))),
    make(
      "tbody",
      {},
      ...tokens1.map((token, row) =>
        make("tr", {}, makeHead(token, "row"), ...alignment[row].map((score, column) => cell(score, row, column))),
      ),
    ),
  );
  return make("div", { class: "map-frame", tabindex: "0", role: "region", "aria-label": "Heat map" }, table);
}

/** Pointing at a token or a cell brings out what belongs to it. */
function followPointer(section, pairs, map, readout, { tokens1, tokens2, alignment }) {
  const lists = [...pairs.querySelectorAll(".tokens")].map((list) => [...list.children]);
  const rest = readout.textContent;
  const light = (one, two) => {
    const has = one !== null || two !== null;
    section.classList.toggle("has-lit", has);
    for (const path of pairs.querySelectorAll("path")) {
      path.classList.toggle("lit", has && (one === null || path.one === one) && (two === null || path.two === two));
    }
    const shade = (token, score) => token.style.setProperty("--share", String(Math.max(0, score ?? 0)));
    lists[0].forEach((token, at) => {
      token.classList.toggle("lit", at === one);
      shade(token, one === null && two !== null ? alignment[at][two] : 0);
    });
    lists[1].forEach((token, at) => {
      token.classList.toggle("lit", at === two);
      shade(token, two === null && one !== null ? alignment[one][at] : 0);
    });
    for (const td of map.querySelectorAll("tbody td")) td.classList.toggle("lit", td.row === one && td.column === two);
    readout.textContent =
      one !== null && two !== null
        ? `${cleanToken(tokens1[one])} · ${cleanToken(tokens2[two])}  ${formatScore(alignment[one][two])}`
        : rest;
  };
  section.addEventListener("pointerover", ({ target }) => {
    const cell = target.closest("tbody td");
    if (cell) return light(cell.row, cell.column);
    const token = target.closest(".tokens li");
    if (!token) return light(null, null);
    return lists[0].includes(token) ? light(lists[0].indexOf(token), null) : light(null, lists[1].indexOf(token));
  });
  section.addEventListener("pointerleave", () => light(null, null));
}

/** Each token's best match; those that choose each other come once. */
function findMatches(alignment) {
  const matches = alignment.map((row, one) => ({
    one,
    two: findLargest(row).at,
    score: findLargest(row).score,
    isMutual: false,
  }));
  alignment[0].forEach((_, two) => {
    const { at: one, score } = findLargest(alignment.map((row) => row[two]));
    if (matches[one].two === two) matches[one].isMutual = true;
    else matches.push({ one, two, score, isMutual: false });
  });
  return matches;
}

function findLargest(values) {
  return values.reduce((best, score, at) => (score > best.score ? { at, score } : best), { at: 0, score: -Infinity });
}

function describe({ at, score }, others) {
  return `, best match ${cleanToken(others[at])} ${formatScore(score, 2)}`;
}

function makeToken(token, note) {
  const text = make("bdi");
  appendPlain(text, cleanToken(token));
  return make("li", {}, text, make("span", { class: "unseen" }, note));
}

function makeHead(token, scope) {
  const text = make("bdi");
  appendPlain(text, cleanToken(token));
  return make("th", { scope, title: cleanToken(token) }, make("span", {}, text));
}

/** Tokenizers mark a word's beginning or its continuation in their own ways. */
function cleanToken(token) {
  const text = token.replace(/^[Ġ▁]+(?=.)/u, "").replace(/^##(?=.)/u, "·");
  return text.length > 24 ? `${text.slice(0, 23)}…` : text;
}
