// Runs before the page is painted, so that it does not flash in the other theme.
(() => {
  try {
    const remembered = localStorage.getItem("transenc-theme");
    if (remembered === "dark" || remembered === "light") document.documentElement.dataset.theme = remembered;
  } catch {
    // Storage is closed to this page: the theme of the system it is.
  }
})();
