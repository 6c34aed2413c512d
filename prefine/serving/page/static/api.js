// Everything that this page asks of the server: the same API that other clients use.

const KEY = "prefine-key";
const RETRIES = 3;
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** A request that failed, with words for people. */
export class ApiProblem extends Error {
  constructor(message, status = 0, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

let apiKey = keptKey();
let askForKey = async () => null;
let waitingForKey = null;

/** Say how a person is asked for the API key: an async function that gives it, or null. */
export function onMissingKey(ask) {
  askForKey = ask;
}

function keptKey() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null; // storage is blocked: the key lives as long as the page
  }
}

function keepKey(key) {
  apiKey = key;
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // As above.
  }
}

async function send(path, options) {
  const headers = options.body ? { "Content-Type": "application/json" } : {};
  if (apiKey) headers.Authorization = `Bearer ${apiKey}`;
  try {
    return await fetch(path, { ...options, headers, credentials: "omit", cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiProblem("The server cannot be reached. Is it still running?");
  }
}

/** A response of the server; whoever has to is asked for the API key first. */
async function call(path, options = {}) {
  for (;;) {
    const response = await send(path, options);
    if (response.ok) return response;
    if (response.status !== 401) throw await problemOf(response);
    // Several requests may need the key at once; one dialog is enough.
    waitingForKey ??= askForKey(apiKey !== null).finally(() => { waitingForKey = null; });
    const given = await waitingForKey;
    if (!given) throw new ApiProblem("The server asks for its API key.", 401);
    keepKey(given);
  }
}

async function problemOf(response) {
  let said = {};
  try {
    said = (await response.json()).error ?? {};
  } catch {
    // Not our JSON: the status has to do.
  }
  const wait = response.headers.get("Retry-After");
  const later = response.status === 429 && wait ? `. Try again in ${wait} s.` : "";
  return new ApiProblem(`${said.message ?? `The server answered ${response.status}.`}${later}`, response.status, said.code);
}

/** The names of the models that can chat. */
export async function listModels() {
  const { data } = await (await call("/v1/models")).json();
  return data.filter((model) => model.kind !== "reward").map((model) => String(model.id));
}

/** What the server does with feedback: {enabled, stores_texts, retention_days}. */
export async function feedbackSettings() {
  try {
    return await (await call("/v1/feedback")).json();
  } catch (error) {
    if (error.status === 404) return { enabled: false, stores_texts: false, retention_days: null };
    throw error;
  }
}

/** Send one event of feedback. Sent again with the same key if no answer comes; the server records it once. */
export async function sendFeedback(event) {
  const key = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  for (let left = RETRIES; ; left -= 1) {
    try {
      return await (await call("/v1/feedback", { method: "POST", body: JSON.stringify({ ...event, key }) })).json();
    } catch (error) {
      const mayHelp = error instanceof ApiProblem && (error.status === 0 || error.status >= 500);
      if (!mayHelp || left <= 1) throw error;
      await pause(400 * (RETRIES - left + 1));
    }
  }
}

/** The chunks of a streamed chat completion. Ends with ApiProblem if the stream breaks off. */
export async function* streamChat(request, signal) {
  const body = JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } });
  const response = await call("/v1/chat/completions", { method: "POST", body, signal });
  for await (const data of serverEvents(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiProblem(chunk.error.message ?? "The server failed.", 500, chunk.error.code);
    yield chunk;
  }
  throw new ApiProblem("The answer broke off: the connection to the server ended.");
}

// The data of server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).
async function* serverEvents(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let buffer = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      buffer += decoder.decode(value, { stream: !done });
      const lines = buffer.split(/\r\n|\n/);
      buffer = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
