// The page: what its state is, what is asked for when it changes, and what a click or a key does.

import { RETRIES, getInfo, post, sleep } from "./api.js";
import { drawMatches, showComparison } from "./compare.js";
import { followControls, showControls } from "./controls.js";
import { debounce, make } from "./dom.js";
import { nameState, showHits, toggleCard } from "./hits.js";
import { showLatency } from "./latency.js";
import { drawLines, findCards, lightUp } from "./lines.js";
import { makeError, makeNothing, makeWelcome } from "./notices.js";
import { readState, writeState } from "./state.js";
import { setUpKeys } from "./keys.js";
import { splitPassage } from "./text.js";
import { setUpTheme } from "./appearance.js";

const PAUSE = 140; // ms after the last key before a question is asked
const BURST = 1500; // ms: keys that follow each other faster make one step of the browser's history
const SLOW = 250; // ms of reranking from which the bi-encoder's order is asked for first, and shown meanwhile

const at = (id) => document.getElementById(id);
const results = at("results");

let state = readState(location.hash);
let info = null;
let rerankTime = 0;
let burstEnds = 0;
let isAdding = false;
const asking = { search: null, compare: null, info: null }; // the request of each kind that still counts

const searchSoon = debounce(() => run("search"), PAUSE);
const compareSoon = debounce(() => run("compare"), 2 * PAUSE);

// ---- state

/** Change the state; `step` false: no new step of the browser's history. */
function change(patch, { step = true } = {}) {
  state = { ...state, ...patch };
  const written = writeState(state);
  const address = written ? `#${written}` : location.pathname + location.search;
  if (written !== location.hash.slice(1)) history[step ? "pushState" : "replaceState"](null, "", address);
  showState();
}

/** Take over what is being typed: one step of history for a burst of keys. */
function type(patch, soon) {
  change(patch, { step: performance.now() > burstEnds });
  burstEnds = performance.now() + BURST;
  soon();
}

function ask(patch) {
  change(patch);
  run(state.view);
}

function showState() {
  const isSearch = state.view === "search";
  at("search-view").hidden = !isSearch;
  at("compare-view").hidden = isSearch;
  for (const link of document.querySelectorAll("nav a")) {
    link.href = `#${writeState({ ...state, view: link.dataset.view })}`;
    if (link.dataset.view === state.view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  for (const id of ["query", "one", "two"]) {
    if (at(id).value !== state[id]) at(id).value = state[id]; // setting it would move the cursor
  }
  document.title = isSearch && state.query.trim() ? `${state.query.trim()} · transenc` : "transenc";
  results.dataset.order = state.order;
  for (const button of at("orders").children) {
    button.setAttribute("aria-pressed", String(button.dataset.order === state.order));
  }
  if (info) refreshControls();
}

function refreshControls() {
  showControls(info, state, {
    isAdding,
    add: (condition) => setFilters(state.where.includes(condition) ? state.where : [...state.where, condition]),
    remove: (condition) => setFilters(state.where.filter((each) => each !== condition)),
    setAdding,
  });
}

function setFilters(where) {
  isAdding = false;
  ask({ where });
  at("filters").querySelector(".add")?.focus();
}

function setAdding(value) {
  isAdding = value;
  refreshControls();
  at("filters").querySelector(".editor select, .add")?.focus();
}

// ---- asking

/** Ask what the view needs now; an answer to an earlier question is dropped. */
async function run(view) {
  (view === "search" ? searchSoon : compareSoon).drop();
  const mine = new AbortController();
  asking[view]?.abort();
  asking[view] = mine;
  const isLoading = (value) => {
    at(`${view}-progress`).hidden = !value;
    (view === "search" ? results : at("comparison")).setAttribute("aria-busy", String(value));
  };
  isLoading(true);
  try {
    await (view === "search" ? search(mine.signal) : compare(mine.signal));
  } catch (error) {
    if (mine.signal.aborted) return;
    showError(view, error);
  } finally {
    if (asking[view] === mine) isLoading(false);
  }
}

async function search(signal) {
  const { query, topK, candidates, weight, where, hybrid, rerank } = state;
  if (!info) await loadInfo(signal);
  if (!query.trim()) return showWelcome();
  const options = { signal, onBusy };
  const question = { query, top_k: topK, candidates, where, hybrid: hybrid && info.hybrid };
  if (rerank && info.rerankers.length && rerankTime > SLOW) {
    show(await post("search", { ...question, rerank: false }, options), true);
    await sleep(2 * PAUSE, signal);
  }
  const found = await post("search", { ...question, rerank, rerank_weight: weight }, options);
  if (found.reranked) rerankTime = found.timings.rerank_ms;
  show(found, false);
  if (found.generation !== info.generation) await loadInfo(signal).catch(() => {}); // else after the next search
}

async function compare(signal) {
  const { one, two } = state;
  if (!info) await loadInfo(signal);
  if (!one.trim() || !two.trim()) {
    say("compare", "Write two sentences to compare.");
    hideLatency("compare");
    return at("comparison").replaceChildren();
  }
  const found = await post("similarity", { sentence1: one, sentence2: two }, { signal, onBusy });
  showComparison(at("comparison"), found);
  showLatency(at("compare-latency"), found.timings, { rerank: "reranker" });
  say("compare", "");
}

async function loadInfo(signal) {
  info = await getInfo({ signal, onBusy });
  const parts = [`${info.documents.toLocaleString("en")} documents`, info.encoder, ...info.rerankers].filter(Boolean);
  at("facts").replaceChildren(...parts.map((part) => make("span", {}, part)));
  refreshControls();
}

function onBusy(seconds, attempt) {
  say(state.view, `The server is busy; trying again in ${seconds} s (${attempt} of ${RETRIES})`);
}

// ---- showing

function show(found, isPending) {
  const focused = document.activeElement?.closest?.(".hit");
  const order = focused?.closest(".column.reranked") ? "reranked" : "retrieved";
  if (found.hits.length) {
    const hybrid = state.hybrid && info.hybrid;
    showHits(results, found, { ...state, hybrid, limits: info.limits, pending: isPending });
  } else {
    clear(makeNothing(state.where, removeFilters));
  }
  const again = [order, "retrieved"].map((each) => findCards(results, each).get(focused?.hit?.id)).find(Boolean);
  again?.querySelector(".title").focus();
  at("orders").hidden = results.dataset.lists !== "2";
  const hits = `${found.hits.length} ${found.hits.length === 1 ? "hit" : "hits"}`;
  if (isPending) say("search", `${hits}, reranking`);
  else say("search", found.hits.length ? `${hits}${found.reranked ? ", reranked" : ""}` : "No hits");
  showLatency(at("search-latency"), found.timings);
}

function say(view, text) {
  const status = at(`${view}-status`);
  if (status.textContent !== text) status.textContent = text;
}

function hideLatency(view) {
  at(`${view}-latency`).hidden = true;
}

function clear(...children) {
  results.dataset.lists = "0";
  results.replaceChildren(...children);
  at("orders").hidden = true;
}

/** Before the first query. */
function showWelcome() {
  clear(makeWelcome(info));
  hideLatency("search");
  say("search", "");
}

function showError(view, error) {
  const isSearch = view === "search";
  const notice = makeError(error, {
    where: isSearch ? state.where : [],
    retry: () => run(view),
    remove: removeFilters,
  });
  hideLatency(view);
  say(view, "");
  if (isSearch) clear(notice);
  else at("comparison").replaceChildren(notice);
}

function removeFilters() {
  ask({ where: [] });
}

// ---- what people do

function setUp() {
  at("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    burstEnds = 0;
    run("search");
  });
  const takeQuery = (event) => {
    if (!event.isComposing) type({ query: at("query").value, open: [], left: [] }, searchSoon);
  };
  at("query").addEventListener("input", takeQuery);
  at("query").addEventListener("compositionend", takeQuery);
  for (const id of ["one", "two"]) at(id).addEventListener("input", () => type({ [id]: at(id).value }, compareSoon));
  at("sentences").addEventListener("submit", (event) => event.preventDefault());
  at("swap").addEventListener("click", () => ask({ one: state.two, two: state.one }));

  followControls(ask);
  at("orders").addEventListener("click", ({ target }) => {
    if (target.dataset.order) change({ order: target.dataset.order }, { step: false });
  });

  document.querySelector("nav").addEventListener("click", (event) => {
    const view = event.target.dataset.view;
    if (!view || event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    ask({ view });
  });
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    results.focus();
  });

  results.addEventListener("click", ({ target }) => {
    const button = target.closest("[data-do]");
    const card = button?.closest(".hit");
    if (card) actions[button.dataset.do](card.hit, button, card);
  });
  const light = ({ target }) =>
    lightUp(results, target.closest(".hit, .line")?.hit?.id ?? target.closest(".line")?.documentId ?? null);
  results.addEventListener("pointerover", light);
  results.addEventListener("focusin", light);
  results.addEventListener("pointerleave", () => lightUp(results, null));
  results.addEventListener("focusout", () => lightUp(results, null));
  new ResizeObserver(() => drawLines(results)).observe(results);
  new ResizeObserver(() => drawMatches(at("comparison"))).observe(at("comparison"));

  addEventListener("popstate", () => {
    state = readState(location.hash);
    burstEnds = 0;
    showState();
    run(state.view);
  });
}

const actions = {
  toggle({ id }, _, card) {
    const order = card.closest(".column").classList.contains("retrieved") ? "retrieved" : "reranked";
    const name = nameState(order, results.dataset.lists === "2");
    const isOpen = !state[name].includes(id);
    change({ [name]: isOpen ? [...state[name], id] : state[name].filter((each) => each !== id) }, { step: false });
    toggleCard(card, isOpen);
    drawLines(results);
  },
  filter(_, { dataset }) {
    ask({ where: [...state.where, dataset.condition] });
  },
  compare(hit) {
    ask({ view: "compare", one: state.query, two: `${hit.title} ${splitPassage(hit)[1]}`.trim() });
    at("one").focus();
  },
};

setUp();
setUpTheme(at("theme-button"));
setUpKeys({
  query: at("query"),
  results,
  dialog: at("keys"),
  opener: at("keys-button"),
  letters: at("letters"),
  change: (patch) => change(patch, { step: false }),
  clear: () => type({ query: "", open: [], left: [] }, searchSoon.now),
});
showState();
run(state.view);
if (state.view === "search" && !state.query && matchMedia("(hover: hover)").matches) at("query").focus();
