// Requests to the worker that serves this page. The token goes into a header, never into an address or a cookie.
const ANSWER_WITHIN_MS = 10000;
export const ACTION_WITHIN_MS = 65000; // the worker takes 60 s at most
const QUIET_MAX_MS = 40000; // the worker sends a comment every 15 s
const TOKEN_KEY = "simplu-token";

export class UnreachableError extends Error {}

let token = sessionStorage.getItem(TOKEN_KEY);

export const knownToken = () => token;

export function keepToken(value) {
  token = value;
  sessionStorage.setItem(TOKEN_KEY, value);
}

export function forgetToken() {
  token = null;
  sessionStorage.removeItem(TOKEN_KEY);
}

// A header consists of bytes: those of the token in UTF-8.
const headers = () => (token ? { Authorization: `Bearer ${String.fromCharCode(...new TextEncoder().encode(token))}` } : {});

// A whole number keeps all of its digits, as text, where the browser has them.
function exact(_, value, context) {
  return typeof value === "number" && context?.source && /^-?\d{16,}$/.test(context.source) ? context.source : value;
}

export function parse(text) {
  try {
    return JSON.parse(text, exact) ?? {};
  } catch {
    return {};
  }
}

export async function ask(path, { method = "GET", body, isOpen = false, withinMs = ANSWER_WITHIN_MS } = {}) {
  const sent = token;
  const signal = AbortSignal.timeout(withinMs);
  const options = { method, body: body && JSON.stringify(body), signal, cache: "no-store", headers: isOpen ? {} : headers() };
  if (body) options.headers["Content-Type"] = "application/json";
  try {
    const response = await fetch(path, options);
    const answer = { status: response.status, body: parse(await response.text()) };
    if (isOpen || sent === token) return answer;
    throw new Error("this answer is for another token");
  } catch (error) {
    throw new UnreachableError(path, { cause: error });
  }
}

// Read the events of *path* until it ends, and call *receive* with the name and the data of each. Return the status.
export async function listen(path, receive, stop) {
  const quiet = new AbortController();
  let timer = setTimeout(() => quiet.abort(), QUIET_MAX_MS);
  try {
    const response = await fetch(path, { headers: headers(), cache: "no-store", signal: AbortSignal.any([stop, quiet.signal]) });
    const isStream = (response.headers.get("Content-Type") ?? "").startsWith("text/event-stream");
    if (!response.ok || !isStream) return response.ok ? 404 : response.status;
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return response.status;
      clearTimeout(timer);
      timer = setTimeout(() => quiet.abort(), QUIET_MAX_MS);
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) receiveEvent(part, receive);
    }
  } catch {
    return 0;
  } finally {
    clearTimeout(timer);
  }
}

function receiveEvent(part, receive) {
  let name = "message";
  const data = [];
  for (const line of part.split("\n")) {
    if (line.startsWith("event:")) name = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).trim());
  }
  if (data.length) receive(name, parse(data.join("\n")));
}
