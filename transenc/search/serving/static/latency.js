// Where the time of an answer went, as one stacked bar.

import { formatTime, make } from "./dom.js";

const STEPS = ["queue", "encode", "retrieve", "rerank"];

/** Show `timings` of the server in milliseconds; steps that were not taken are left out. */
export function showLatency(place, timings, names = {}) {
  const steps = STEPS.map((step) => [step, timings[`${step}_ms`] ?? 0]).filter(([, ms]) => ms > 0);
  const bar = make("div", { class: "stack", "aria-hidden": "true" });
  for (const [step, ms] of steps) {
    const part = bar.appendChild(make("span", { class: step }));
    part.style.setProperty("flex-grow", String(ms));
  }
  const legend = steps.map(([step, ms]) =>
    make("li", { class: step }, names[step] ?? step, " ", make("b", {}, formatTime(ms))),
  );
  place.replaceChildren(
    bar,
    make(
      "ul",
      { "aria-label": "Time taken" },
      ...legend,
      make("li", { class: "total" }, make("b", {}, formatTime(timings.total_ms))),
    ),
  );
  place.hidden = false;
}
