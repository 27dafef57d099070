// Dark or light: as the system has it, until someone chooses the other one here.

import { forget, recall, remember } from "./memory.js";

export function setUpTheme(button) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const show = () => button.setAttribute("aria-pressed", String(isDark()));
  button.addEventListener("click", () => {
    const wanted = isDark() ? "light" : "dark";
    if (wanted === (system.matches ? "dark" : "light")) {
      delete root.dataset.theme;
      forget("theme");
    } else {
      root.dataset.theme = wanted;
      remember("theme", wanted);
    }
    show();
  });
  system.addEventListener("change", show);
  if (recall("theme") === null) delete root.dataset.theme;
  show();
}
