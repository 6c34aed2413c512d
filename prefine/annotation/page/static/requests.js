// What this page asks of its server.

const RETRIES = 4;
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** A request that failed, with words for people. */
export class RequestProblem extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** A random name for one vote. Sent again with it, a vote counts once. */
export function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Send a change. Asks again where the server cannot be reached, or is about to restart. Returns what it answers. */
export async function post(path, body = {}, retries = RETRIES) {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await send(path, body);
    } catch (problem) {
      const mayHelp = problem instanceof RequestProblem && (problem.status === 0 || problem.status >= 500);
      if (!mayHelp || attempt >= retries) throw problem;
      await pause(300 * attempt * attempt);
    }
  }
}

async function send(path, body) {
  const headers = {
    "Content-Type": "application/json",
    "X-CSRF-Token": document.querySelector("meta[name=form-token]").content,
  };
  let response;
  try {
    response = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), cache: "no-store" });
  } catch {
    throw new RequestProblem("The server cannot be reached. Your work stays here; try again in a moment.");
  }
  let answer = {};
  try {
    answer = await response.json();
  } catch {
    // Not our JSON: the status has to do.
  }
  if (response.ok) return answer;
  throw new RequestProblem(sentence(answer.error?.message ?? `the server answered ${response.status}`), response.status);
}

function sentence(text) {
  return `${text.slice(0, 1).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
}
