// The page: asks for the token once, follows the worker's events, and shows them. Without events it asks every 2 s.
import { showCharts } from "./charts.js";
import { UnreachableError, ask, forgetToken, keepToken, knownToken, listen } from "./client.js";
import { byId, element, setText, showSection } from "./dom.js";
import { duration, text, withoutNothing } from "./format.js";
import { closeLetters, openLetters } from "./letters.js";
import { closeLookup, openLookup } from "./lookup.js";
import { overviewOf, sectionsOf } from "./views.js";

const POLL_EVERY_MS = 2000;
const PROBE_EVERY_MS = 5000;
const SLOW_EVERY_MS = 15000; // what events do not bring: SQS is asked, and the last hour of the stream shards
const RESULT_SHOWN_MS = 15000; // of an action
const RETRY_EVENTS_MS = 60000; // where the worker has no events

const state = { status: null, fleet: null, queues: null, hours: {}, asksForToken: false };
let stream = new AbortController();

const pause = (ms) => new Promise((wake) => setTimeout(wake, ms));
const shown = async () => {
  while (document.hidden) await new Promise((wake) => document.addEventListener("visibilitychange", wake, { once: true }));
};

function showNotice(message, colour = "") {
  const notice = byId("notice");
  notice.hidden = !message;
  notice.className = colour;
  setText(notice.firstElementChild, message);
}

function showBadge(name, answer) {
  const badge = byId(name);
  const isFine = answer?.status === 200;
  const reason = name === "ready" && state.status?.unreadyDetail || text(answer?.body.reason ?? "").replace(/_/g, " ");
  setText(badge, !answer ? `${name}?` : isFine ? name : `not ${name}: ${reason}`);
  badge.className = `badge ${!answer ? "" : isFine ? "good" : name === "live" ? "bad" : "warn"}`;
}

function showOverview(tiles) {
  const holder = byId("overview");
  const shape = JSON.stringify(tiles);
  if (holder.shape === shape) return;
  holder.shape = shape;
  while (holder.children.length > tiles.length) holder.lastElementChild.remove();
  for (const [place, { id, value, label, tone }] of tiles.entries()) {
    const tile = holder.children[place] ?? holder.appendChild(element("a"));
    tile.className = `tile card ${tone || ""}`;
    tile.href = `#section-${id}`;
    if (!tile.children.length) tile.append(element("strong"), element("span"));
    setText(tile.firstElementChild, value);
    setText(tile.lastElementChild, label);
  }
}

function showSections(sections) {
  const parent = byId("sections");
  let before = null;
  for (const one of sections) {
    if (one.isHidden || (one.facts && !Object.keys(one.facts).length) || (one.rows && !one.rows.length && !one.note)) {
      byId(`section-${one.id}`)?.remove();
      continue;
    }
    const made = showSection(parent, one);
    const place = before ? before.nextElementSibling : parent.firstElementChild;
    if (place !== made) parent.insertBefore(made, place);
    before = made;
  }
}

// An operator's actions, each asked for once more; a viewer has none.
function actionsOf({ role }) {
  if (role !== "operator") return null;
  return {
    retry: ({ target }) => ({
      title: "Retry now", subject: target, act: () => act(`Try ${target} now, on each replica?`, "held/retry", { target }),
    }),
    release: ({ streamShard, owner, state: now }) => (!owner || now === "ended" ? null : {
      title: "Release", subject: streamShard,
      act: () => act(`Have ${owner} release ${streamShard}? Another replica takes it.`, `leases/${encodeURIComponent(streamShard)}/release`),
    }),
  };
}

async function act(question, path, body) {
  if (!confirm(question)) return;
  const { status, body: answer } = await ask(path, { method: "POST", body }).catch(() => ({ status: 0, body: {} }));
  const result = answer.error ?? (Object.entries(withoutNothing(answer)).map(([name, value]) => `${name} ${value}`).join(", ") || "no answer");
  state.result = { text: `${status >= 200 && status < 300 ? "Done" : "Not done"}: ${result}.`, until: Date.now() + RESULT_SHOWN_MS };
  show();
}

function show() {
  const { status } = state;
  if (!status) return;
  const now = Date.now();
  const known = { ...state, actions: actionsOf(status) };
  showOverview(overviewOf(status, known));
  showCharts(status.history ?? {});
  setText(byId("scope"), `Charts, catch-ups and errors are those of replica ${status.replica}.`);
  showSections(sectionsOf(status, known));
  const uptime = status.uptime_s;
  setText(byId("about"), [
    status.version && `version ${status.version}`,
    status.replica && `replica ${status.replica}`,
    typeof uptime === "number" && `up ${duration(uptime)}`,
    status.role,
  ].filter(Boolean).join(" · "));
  setText(byId("updated"), `updated ${new Date(now).toLocaleTimeString()}`);
  byId("content").hidden = false;
  byId("content").className = "";
  byId("login").hidden = true;
  byId("section-letters").hidden = status.role !== "operator";
  byId("forget").hidden = !knownToken();
  showNotice(now < (state.result?.until ?? 0) ? state.result.text : "");
}

function forgetStatus() {
  Object.assign(state, { status: null, fleet: null, queues: null, hours: {} });
  for (const id of ["overview", "charts", "sections"]) byId(id).replaceChildren();
  byId("overview").shape = undefined;
  closeLookup();
  closeLetters();
  byId("content").hidden = true;
  setText(byId("about"), "");
  setText(byId("updated"), "");
}

function askForToken(message) {
  forgetToken();
  state.asksForToken = true;
  forgetStatus();
  byId("login").hidden = false;
  byId("forget").hidden = true;
  showNotice(message, "warn");
}

function showTrouble(message) {
  byId("content").className = "stale";
  showNotice(message, "bad");
}

function showStatus(answer, sentToken) {
  switch (answer.status) {
    case 200:
      state.status = answer.body;
      return show();
    case 401:
      return askForToken(sentToken ? "The worker refused this token (401). Is it the value of API_TOKEN or API_VIEWER_TOKEN?" : "");
    case 403:
      forgetStatus();
      byId("login").hidden = byId("forget").hidden = true;
      return showNotice(`The worker does not show its status (403): ${answer.body.error ?? "no reason was given"}.`, "warn");
    default:
      return showTrouble(`The status could not be read: the worker answered ${answer.status}. ${answer.body.error ?? ""}`);
  }
}

async function poll() {
  const sentToken = knownToken();
  const [status, fleet] = await Promise.all([ask("status"), ask("fleet")]);
  if (sentToken !== knownToken() || state.asksForToken) return;
  state.fleet = fleet.status === 200 ? fleet.body : null;
  showStatus(status, sentToken);
}

// Return whether the worker has events; false where it has none, and the page has to ask.
async function follow() {
  stream = new AbortController();
  const { signal } = stream;
  const status = await listen("events", (name, body) => {
    if (signal.aborted) return;
    if (name === "fleet") state.fleet = body;
    if (name === "status") state.status = body;
    show();
  }, signal);
  return status === 200;
}

async function keepShowing() {
  let triedAt = -RETRY_EVENTS_MS;
  for (;;) {
    await shown();
    try {
      if (!state.asksForToken) {
        await poll();
        if (state.status && performance.now() - triedAt >= RETRY_EVENTS_MS) {
          triedAt = (await follow()) ? -RETRY_EVENTS_MS : performance.now();
        }
      }
    } catch (error) {
      if (state.asksForToken) continue;
      if (!(error instanceof UnreachableError)) console.error(error);
      showTrouble(error instanceof UnreachableError
        ? `The worker does not answer at ${location.host}. Trying again every ${POLL_EVERY_MS / 1000} s.`
        : `This page has an error: ${error.message}`);
    }
    await pause(POLL_EVERY_MS);
  }
}

async function keepProbing() {
  for (;;) {
    await shown();
    const answers = await Promise.all([ask("livez", { isOpen: true }), ask("readyz", { isOpen: true })]).catch(() => []);
    showBadge("live", answers[0]);
    showBadge("ready", answers[1]);
    await pause(PROBE_EVERY_MS);
  }
}

async function keepAskingSlowly() {
  for (;;) {
    await shown();
    if (state.status) {
      const [queues, history] = await Promise.all(["sqs/stats", "fleet/history"].map((path) => ask(path).catch(() => ({}))));
      state.queues = queues.body?.queues;
      state.hours = Object.fromEntries((history.body?.streamShards ?? []).map((one) => [one.streamShard, one]));
      show();
    }
    await pause(state.status ? SLOW_EVERY_MS : POLL_EVERY_MS / 4);
  }
}

byId("login").addEventListener("submit", (event) => {
  event.preventDefault();
  keepToken(byId("token").value.trim());
  byId("token").value = "";
  state.asksForToken = false;
  poll().then(() => state.status && byId("main").focus(), () => {});
});
byId("forget").addEventListener("click", () => {
  stream.abort();
  askForToken("");
  byId("token").focus();
});
document.addEventListener("visibilitychange", () => document.hidden && stream.abort());
openLookup({ act, isOperator: () => state.status?.role === "operator" });
openLetters();
keepShowing();
keepProbing();
keepAskingSlowly();
