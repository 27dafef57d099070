// Elements are built from names and text only: nothing a document or a server says is ever read as markup.

const SVG = "http://www.w3.org/2000/svg";

/** Make an element; attributes that are null or false are left out, strings among the children become text. */
export function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function makeShape(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** A bar that is filled by `share`, 0 to 1. */
export function makeBar(share, kind) {
  const bar = make("span", { class: `bar ${kind}`, "aria-hidden": "true" });
  bar.style.setProperty("--share", String(Math.min(1, Math.max(0, share))));
  return bar;
}

/** A number with a true minus sign and always as many decimals. */
export function formatScore(value, decimals = 3) {
  const text = Math.abs(value).toFixed(decimals);
  return value < 0 && Number(text) !== 0 ? `−${text}` : text;
}

export function formatTime(ms) {
  if (ms >= 999.5) return `${(ms / 1000).toFixed(2)} s`;
  if (ms < 0.05) return "0 ms";
  return `${ms >= 9.95 ? Math.round(ms) : ms.toFixed(1)} ms`;
}

/** Call `work` when it has not been called for `ms`; `.now()` does not wait, `.drop()` forgets. */
export function debounce(work, ms) {
  let timer = null;
  const later = () => {
    clearTimeout(timer);
    timer = setTimeout(work, ms);
  };
  later.drop = () => clearTimeout(timer);
  later.now = () => {
    clearTimeout(timer);
    work();
  };
  return later;
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}
