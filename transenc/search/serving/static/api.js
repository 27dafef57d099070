// Talking to the server: one kind of error, with a line to show.

const PATIENCE = 60_000; // ms; the server gives up long before
export const RETRIES = 5; // while the server is busy

/** What went wrong, to be shown as it is; `retryAfter` in seconds when it is worth trying again by itself. */
export class RequestError extends Error {
  constructor(message, { status = 0, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** GET /info; arguments and errors are those of `post`. */
export function getInfo(options) {
  return insist("info", {}, options);
}

/**
 * POST a body as JSON. A busy server is asked again, and `onBusy(seconds, attempt)` told before each wait.
 * Throws RequestError, or what `signal` was aborted with.
 */
export function post(path, body, options) {
  const headers = { "Content-Type": "application/json" };
  return insist(path, { method: "POST", headers, body: JSON.stringify(body) }, options);
}

/** Wait; throws what `signal` is aborted with meanwhile. */
export function sleep(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    signal.addEventListener("abort", stop, { once: true });
  });
}

async function insist(path, request, { signal, onBusy }) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await fetchJson(path, request, signal);
    } catch (error) {
      if (signal.aborted || (error.retryAfter ?? null) === null || attempt > RETRIES) throw error;
      const seconds = Math.max(1, error.retryAfter);
      onBusy(seconds, attempt);
      await sleep(seconds * 1000, signal);
    }
  }
}

async function fetchJson(path, request, signal) {
  const patience = AbortSignal.timeout(PATIENCE);
  let response, text;
  try {
    response = await fetch(path, { ...request, signal: AbortSignal.any([signal, patience]) });
    text = await response.text();
  } catch (error) {
    if (signal.aborted) throw error;
    if (patience.aborted) throw new RequestError(`The server has not answered for ${PATIENCE / 1000} seconds.`);
    throw new RequestError("The server does not answer. It may have been stopped, or the network is down.");
  }
  const answer = parse(text);
  if (response.ok && answer !== null) return answer;
  const { status } = response;
  const message = typeof answer?.error === "string" ? answer.error : `The server answered with status ${status}.`;
  const seconds = Number(response.headers.get("Retry-After") ?? 1);
  const retryAfter = status === 503 ? (seconds >= 0 ? Math.min(seconds, 60) : 1) : null;
  throw new RequestError(message, { status, retryAfter });
}

function parse(text) {
  try {
    return JSON.parse(text, keepDigits);
  } catch {
    return null;
  }
}

/** Whole numbers that a double cannot hold stay what was written. */
function keepDigits(key, value, context) {
  const isLarge = typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value);
  return isLarge && /^-?\d+$/.test(context?.source ?? "") ? context.source : value;
}
