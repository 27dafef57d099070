// What this browser remembers of the page; a browser that does not let it simply forgets.

const OURS = "transenc-"; // other programs may be served from the same address

export function recall(name) {
  try {
    return localStorage.getItem(OURS + name);
  } catch {
    return null;
  }
}

export function remember(name, value) {
  try {
    localStorage.setItem(OURS + name, value);
  } catch {
    // Closed or full: it holds for this visit.
  }
}

export function forget(name) {
  try {
    localStorage.removeItem(OURS + name);
  } catch {
    // As above.
  }
}
