// Text of documents and queries: which words match, which part to show, and how to show it as text and nothing else.

import { make } from "./dom.js";

const LOOKED_AT = 20_000; // characters of a passage: the server may not know where in a long text it is
const SHOWN = 260; // characters of a passage on a card; the style sheet cuts what does not fit
const COMMON = new Set(
  (
    "a an the and or but not no nor so if then than that this these those it its is are was were be been being am do " +
    "does did have has had i me my we us our you your he him his she her they them their who whom whose what which " +
    "when where why how can could will would shall should may might must to of in on at by for from with without " +
    "into onto about as up out off over under there here too very just also all any some much many more most such " +
    "only again s t"
  ).split(" "),
);
const ENDINGS = ["ings", "ing", "ies", "ed", "es", "s", "ly", "y", "e"];
// Not printed, or they steer how other text is printed: shown by their number. Tab and line ends stay.
const HIDDEN = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069\ufeff]/gu;

const segmenter = new Intl.Segmenter(undefined, { granularity: "word" });

/** The words of a query that are worth marking, as keys that ignore case, accents and common English endings. */
export function findKeys(query) {
  const words = [...splitWords(query)].map(({ key }) => key);
  const rare = words.filter((key) => !COMMON.has(key));
  return new Set((rare.length ? rare : words).map(stem));
}

/** Append `text` to an element with the words of `keys` marked. */
export function appendMarked(element, text, keys) {
  let done = 0;
  for (const { key, start, end } of splitWords(text)) {
    if (!keys.has(stem(key))) continue;
    appendPlain(element, text.slice(done, start));
    appendPlain(element.appendChild(make("mark")), text.slice(start, end));
    done = end;
  }
  appendPlain(element, text.slice(done));
}

/** Append text; characters that are not printed are shown by their number. */
export function appendPlain(element, text) {
  let done = 0;
  for (const { 0: hidden, index } of text.matchAll(HIDDEN)) {
    element.append(text.slice(done, index), makeHidden(hidden));
    done = index + hidden.length;
  }
  if (done < text.length) element.append(text.slice(done));
}

/** The passage of a hit as [before, passage, after]; the server counts characters, JavaScript halves of some. */
export function splitPassage({ text, passage: [start, end] }) {
  if (start < 0 || end < 0) return ["", text, ""];
  const [from, to] = [findOffset(text, start), findOffset(text, end)];
  return [text.slice(0, from), text.slice(from, to), text.slice(to)];
}

/** The part of a passage that holds most of the query's words, from its beginning when that does as well. */
export function cutSnippet(passage, keys) {
  const whole = passage.slice(0, LOOKED_AT).trim();
  if (whole.length <= SHOWN) return whole;
  const matches = [...splitWords(whole)].filter(({ key }) => keys.has(stem(key)));
  const count = (from) =>
    new Set(matches.filter((m) => m.start >= from && m.end <= from + SHOWN).map((m) => stem(m.key))).size;
  let [best, most] = [0, count(0)];
  for (const { start } of matches) {
    const from = Math.max(0, start - 40);
    if (count(from) > most) [best, most] = [from, count(from)];
  }
  if (best === 0) return whole.slice(0, 2 * SHOWN);
  const space = whole.slice(best, best + 40).search(/\s/u);
  return `… ${whole.slice(space < 0 ? best : best + space, best + 2 * SHOWN).trimStart()}`;
}

function* splitWords(text) {
  for (const { segment, index, isWordLike } of segmenter.segment(text)) {
    if (isWordLike) yield { key: fold(segment), start: index, end: index + segment.length };
  }
}

function fold(word) {
  return word.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();
}

/** Cut one ending, so that "eggs" marks "egg"; only for marking, so a wrong cut costs nothing. */
function stem(word) {
  const ending = ENDINGS.find((each) => word.endsWith(each) && word.length - each.length >= 3);
  return ending ? word.slice(0, -ending.length) : word;
}

function findOffset(text, count) {
  if (!/[\ud800-\udfff]/.test(text)) return count;
  let offset = 0;
  for (const letter of text) {
    if (count-- <= 0) break;
    offset += letter.length;
  }
  return offset;
}

function makeHidden(letter) {
  const code = letter.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
  return make("span", { class: "hidden-letter", title: "a character that is not printed" }, `U+${code}`);
}
