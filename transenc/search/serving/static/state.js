// What the page shows is its address. It stands behind the #, which no browser sends: queries stay out of logs.

export const DEFAULTS = Object.freeze({
  view: "search",
  query: "",
  topK: 10,
  candidates: 100,
  weight: null, // null: the server decides
  where: Object.freeze([]), // conditions such as "topic=cooking"
  hybrid: false,
  rerank: true,
  order: "reranked", // which of the two a narrow screen shows
  open: Object.freeze([]), // ids of the documents that are shown whole
  left: Object.freeze([]), // the same for the bi-encoder's order beside the reranked one
  one: "",
  two: "",
});

/** Read the state that an address ("#q=...") carries; what it cannot carry is as by default. */
export function readState(hash) {
  const fields = new URLSearchParams(hash.replace(/^#/, ""));
  const text = (name) => fields.get(name) ?? "";
  return {
    view: text("view") === "compare" ? "compare" : "search",
    query: text("q"),
    topK: readWhole(text("k")) ?? DEFAULTS.topK,
    candidates: readWhole(text("n")) ?? DEFAULTS.candidates,
    weight: /^(0(\.\d+)?|1(\.0+)?)$/.test(text("w")) ? Number(text("w")) : null,
    where: fields.getAll("where").filter((condition) => condition.trim()),
    hybrid: text("hybrid") === "1",
    rerank: text("rerank") !== "0",
    order: text("order") === "retrieved" ? "retrieved" : "reranked",
    open: fields.getAll("open"),
    left: fields.getAll("left"),
    one: text("a"),
    two: text("b"),
  };
}

/** Write a state as the part of an address behind the #; what is as by default is left out. */
export function writeState(state) {
  const fields = new URLSearchParams();
  const put = (name, value, usual) => value !== usual && fields.append(name, String(value));
  put("view", state.view, DEFAULTS.view);
  put("q", state.query, "");
  put("k", state.topK, DEFAULTS.topK);
  put("n", state.candidates, DEFAULTS.candidates);
  put("w", state.weight, null);
  for (const condition of state.where) fields.append("where", condition);
  put("hybrid", state.hybrid ? 1 : 0, 0);
  put("rerank", state.rerank ? 1 : 0, 1);
  put("order", state.order, DEFAULTS.order);
  for (const id of state.open) fields.append("open", id);
  for (const id of state.left) fields.append("left", id);
  put("a", state.one, "");
  put("b", state.two, "");
  return fields.toString();
}

function readWhole(text) {
  return /^[1-9]\d{0,8}$/.test(text) ? Number(text) : null;
}
