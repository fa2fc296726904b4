// The page: asks for the token once, follows the worker's events, and shows them. Without events it asks every 2 s.
import { showCharts } from "./charts.js";
import { ACTION_WITHIN_MS, UnreachableError, ask, forgetToken, keepToken, knownToken, listen } from "./client.js";
import { askInDialog, closeDialog, openDialog } from "./dialog.js";
import { byId, element, setText, showSection } from "./dom.js";
import { count, duration, isStale, plural, text, time, withoutNothing } from "./format.js";
import { factsOfHeld, heldItem, heldOf, moveItem, unnamedElsewhere } from "./held.js";
import { showItems } from "./items.js";
import { closeLetters, openLetters, showLettersAge } from "./letters.js";
import { closeLookup, lookUp, openLookup, showLookupAge } from "./lookup.js";
import { overItems, problemItems, tilesOf, verdictOf } from "./overview.js";
import { VIEWS, currentRoute, hrefOf } from "./router.js";
import { isAbout, sectionsOf, thingOf } from "./views.js";

const POLL_EVERY_MS = 2000;
const PROBE_EVERY_MS = 5000;
const SLOW_EVERY_MS = 8000; // what events do not bring: SQS is asked, and the histories; fresh within STALE_S
const AGES_EVERY_MS = 1000;
const RESULT_SHOWN_MS = 15000; // of an action
const RETRY_EVENTS_MS = 60000; // where the worker has no events
const HELD_SHOWN = 50;
const MOVES_ASKED = 10; // tenants about which the worker is asked, for the size of their moves

const EMPTY = { status: null, fleet: null, queues: null, history: null, moved: {}, at: {}, unreachableSince: null };
const state = { ...EMPTY, asksForToken: false, period: "hour" };
let stream = new AbortController();

const pause = (ms) => new Promise((wake) => setTimeout(wake, ms));
const shown = async () => {
  while (document.hidden) await new Promise((wake) => document.addEventListener("visibilitychange", wake, { once: true }));
};

// Take over an answer, and when it came.
function take(source, body) {
  state[source] = body;
  state.at[source] = Date.now();
}

// The age of each source in seconds; one that has not come yet is as old as the status, which stands for it.
const agesOf = (now) => Object.fromEntries(["status", "fleet", "queues", "history"].map((source) => (
  [source, Math.max(0, (now - (state.at[source] ?? state.at.status)) / 1000)]
)));

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

function showVerdict({ tone, title, text: sentence }) {
  const verdict = byId("verdict");
  verdict.className = `card ${tone}`;
  setText(verdict.firstElementChild, title);
  setText(verdict.lastElementChild, sentence);
}

function showTiles(tiles) {
  const holder = byId("tiles");
  while (holder.children.length > tiles.length) holder.lastElementChild.remove();
  for (const [place, { view, value, label, tone, isGrey }] of tiles.entries()) {
    const tile = holder.children[place] ?? holder.appendChild(element("a"));
    tile.className = `tile card ${tone}${isGrey ? " stale" : ""}`;
    tile.href = hrefOf(view);
    if (!tile.children.length) tile.append(element("strong"), " ", element("span"));
    setText(tile.firstElementChild, value);
    setText(tile.lastElementChild, label);
  }
}

// Show *items* in *parent*; without any the section goes.
function showItemsOrNothing(parent, section) {
  if (section.items.length) return showItems(parent, section);
  byId(`section-${section.id}`)?.remove();
  return null;
}

function showSections(parent, sections) {
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

// An operator's actions, each asked for in a dialog with its facts; a viewer has none.
function actionsOf({ role }) {
  if (role !== "operator") return null;
  return {
    retry: (held) => ({
      title: "Retry now", subject: held.target,
      act: () => act({
        title: `Try ${held.target} now?`, button: "Try it now", facts: { target: held.target, reason: text(held.reasons), ...factsOfHeld(held) },
        note: "Each replica that holds it tries it at once. What still cannot be applied is held again; nothing is lost.",
      }, "held/retry", { target: held.target }),
    }),
  };
}

async function act(question, path, body) {
  if (!await askInDialog(question)) return false;
  const { status, body: answer } = await ask(path, { method: "POST", body, withinMs: ACTION_WITHIN_MS }).catch(() => ({ status: 0, body: {} }));
  const result = answer.error ?? (Object.entries(withoutNothing(answer)).map(([name, value]) => `${name} ${value}`).join(", ") || "no answer");
  const outcome = status === 0 ? "It may be done" : status >= 200 && status < 300 ? "Done" : "Not done";
  state.result = { text: `${outcome}: ${result}.`, until: Date.now() + RESULT_SHOWN_MS };
  show();
  return true;
}

const heldSection = (id, title, held, retry, unnamed = 0) => ({
  id, title,
  note: [
    held.length > HELD_SHOWN ? `${plural(held.length, "target")}; the oldest ${HELD_SHOWN} are shown.` : "",
    unnamed ? `Other replicas hold ${count(unnamed)} more; the oldest of each are shown.` : "",
  ].filter(Boolean).join(" "),
  items: held.slice(0, HELD_SHOWN).map((one) => heldItem(one, retry)),
});

const problemsSection = (known) => ({ id: "problems", title: "What is wrong, and what to do", items: problemItems(known) });

const incidentsSection = ({ fleet }) => ({ id: "incidents", title: "Incidents of the last day that are over", items: overItems(fleet).slice(0, HELD_SHOWN) });

function showOverview(known) {
  showVerdict(verdictOf(known));
  showTiles(tilesOf(known));
  showItemsOrNothing(byId("problems"), problemsSection(known));
  const held = showItemsOrNothing(byId("held"), heldSection("held", "Held targets: their operations wait in the stream", heldOf(known.status, known.fleet), known.actions?.retry, unnamedElsewhere(known.fleet)));
  held?.classList.toggle("stale", isStale(known.ages.status));
  showItemsOrNothing(byId("incidents"), incidentsSection(known));
  byId("incidents").className = byId("problems").className = isStale(known.ages.fleet) ? "stale" : "";
  showCharts(known.history, state.period);
  byId("charts").classList.toggle("stale", isStale(known.ages.history));
}

function showThing(view, thing, known) {
  const parent = byId(`view-${view}`).querySelector(".thing");
  if (!parent) return;
  const section = thingOf(view, thing, known);
  if (!section) return parent.replaceChildren();
  showSection(parent, section);
  const held = heldOf(known.status, known.fleet).filter(({ target }) => isAbout(target, view, thing));
  showItemsOrNothing(parent, heldSection("thing-held", "Held", held, known.actions?.retry));
}

function showMoves({ status, ages, moved }) {
  const moves = status.moves ?? [];
  const made = showItems(byId("moves"), {
    id: "moves", title: "Moves that have not ended", items: moves.map((one) => moveItem(one, moved)),
    note: moves.length ? "" : "None. A tenant's page has the command that moves it.",
  });
  made.classList.toggle("stale", isStale(ages.status));
}

function showMenu(view) {
  const menu = byId("menu");
  if (!menu.children.length) {
    for (const [name, title] of Object.entries(VIEWS)) {
      const link = menu.appendChild(element("a", title));
      link.href = hrefOf(name);
    }
  }
  for (const [place, name] of Object.keys(VIEWS).entries()) {
    if (name === view) menu.children[place].setAttribute("aria-current", "page");
    else menu.children[place].removeAttribute("aria-current");
    byId(`view-${name}`).hidden = name !== view;
  }
  menu.hidden = false;
}

function show() {
  const { status } = state;
  if (!status) return;
  const now = Date.now();
  const known = { ...state, ages: agesOf(now), actions: actionsOf(status) };
  const { view, thing } = currentRoute();
  showMenu(view);
  if (view === "overview") showOverview(known);
  if (view === "moves") showMoves(known);
  showThing(view, thing, known);
  showSections(byId(`view-${view}`).querySelector(".sections"), sectionsOf(view, known));
  showLookupAge(now);
  showLettersAge(now);
  setText(byId("about"), [
    status.version && `version ${status.version}`,
    status.replica && `replica ${status.replica}`,
    typeof status.uptime_s === "number" && `up ${duration(status.uptime_s)}`,
    status.role,
  ].filter(Boolean).join(" · "));
  setText(byId("updated"), `as of ${time(state.at.status)}`);
  byId("updated").className = isStale(known.ages.status) ? "badge bad push" : "soft push";
  byId("content").hidden = false;
  byId("login").hidden = true;
  byId("section-letters").hidden = status.role !== "operator";
  byId("forget").hidden = !knownToken();
  if (!state.unreachableSince) showNotice(now < (state.result?.until ?? 0) ? state.result.text : "");
}

function forgetStatus() {
  Object.assign(state, { ...EMPTY, at: {}, moved: {} });
  for (const id of ["problems", "tiles", "held", "charts", "incidents", "moves"]) byId(id).replaceChildren();
  for (const one of document.querySelectorAll(".sections, .thing")) one.replaceChildren();
  closeDialog();
  closeLookup();
  closeLetters();
  byId("content").hidden = byId("menu").hidden = true;
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
  state.unreachableSince ??= Date.now();
  showNotice(message, "bad");
  show();
}

function showStatus(answer, sentToken) {
  switch (answer.status) {
    case 200: {
      const isFirst = !state.status;
      state.unreachableSince = null;
      take("status", answer.body);
      return isFirst ? followAddress() : show();
    }
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
  if (fleet.status === 200) take("fleet", fleet.body);
  showStatus(status, sentToken);
}

// Return whether the worker has events; false where it has none, and the page has to ask.
async function follow() {
  stream = new AbortController();
  const { signal } = stream;
  const status = await listen("events", (name, body) => {
    if (signal.aborted) return;
    if (name === "fleet" || name === "status") take(name, body);
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

// The tenants of moves in progress: how many rows they have.
async function askAboutMoves() {
  const moves = currentRoute().view === "moves" ? state.status.moves ?? [] : [];
  const names = moves.map((one) => one.tenant).slice(0, MOVES_ASKED);
  const answers = await Promise.all(names.map((name) => ask(`tenants/${encodeURIComponent(name)}`).catch(() => ({ body: {} }))));
  Object.assign(state.moved, Object.fromEntries(names.map((name, place) => [name, answers[place].body])));
}

async function keepAskingSlowly() {
  for (;;) {
    await shown();
    if (state.status) {
      const asked = { queues: "sqs/stats", history: "fleet/history" };
      const answers = await Promise.all(Object.values(asked).map((path) => ask(path).catch(() => ({}))));
      for (const [place, source] of Object.keys(asked).entries()) {
        if (state.status && answers[place].status === 200) take(source, source === "queues" ? answers[place].body.queues : answers[place].body);
      }
      if (state.status) await askAboutMoves();
      show();
    }
    await pause(state.status ? SLOW_EVERY_MS : POLL_EVERY_MS / 4);
  }
}

// A new address: the view, and of a tenant what the shards know of it.
function followAddress() {
  const { view, thing } = currentRoute();
  document.title = `${thing || VIEWS[view]} · simplu-worker`;
  closeDialog();
  show();
  if (view === "tenants" && state.status) lookUp(thing);
  if (view === "moves" && state.status) askAboutMoves().then(show);
  window.scrollTo(0, 0);
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
for (const period of ["hour", "day"]) {
  byId(`period-${period}`).addEventListener("click", () => {
    state.period = period;
    for (const one of ["hour", "day"]) byId(`period-${one}`).setAttribute("aria-pressed", String(one === period));
    show();
  });
}
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address names what is shown
  byId("main").focus();
});
window.addEventListener("hashchange", followAddress);
document.addEventListener("visibilitychange", () => document.hidden && stream.abort());
setInterval(show, AGES_EVERY_MS);
openDialog();
openLookup({ act, isOperator: () => state.status?.role === "operator", shards: () => state.status?.shards ?? [], moves: () => state.status?.moves ?? [] });
openLetters();
keepShowing().catch(console.error);
keepProbing();
keepAskingSlowly();
