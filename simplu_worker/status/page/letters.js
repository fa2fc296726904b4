// Dead letters, for operators: list, look, choose; then a plan, and only after it the replay or the discard.
import { ACTION_WITHIN_MS, ask } from "./client.js";
import { askInDialog } from "./dialog.js";
import { actionButton, byId, element, setText, showCode, showSection } from "./dom.js";
import { editLetter } from "./edit.js";
import { columnsOf, count, duration, isStale, text, time, withoutNothing } from "./format.js";

const LISTED = 200; // on a page
const AT_ONCE = 1000; // of a plan
const LETTERS = columnsOf("failed:choice", "reason:warning", "tenantId:tenant:Tenant", "error:long", "name:text:Source",
  "requestId", "recordBytes:bytes:Size", "look:action:Action");
const PLANNED = columnsOf("reason:warning", "count:number", "tenant", "name:text:Source", "status:text:Outcome",
  "why", "detail:long");
// The title of an action, the members of its plan and of its result with a number, and remarks: before, and in the dialog.
const ACTIONS = {
  replay: ["Replay", "wouldSend", "sent", "Nothing is sent yet.",
    "Each record goes to its source again, in order, with the request id that it had: what was applied meanwhile is dropped. Then its dead letter is deleted."],
  discard: ["Discard", "wouldDiscard", "discarded", "Nothing is deleted yet.",
    "The dead letters are deleted, and with them their records: they are then only in the stream, until its retention ends."],
};
let filter = {};
let listed = { letters: [], readAt: null, note: "" }; // all pages that were read

const remark = (message) => setText(byId("letters-notice"), message);
const clear = (...ids) => ids.forEach((id) => byId(id).replaceChildren());
const tenantOf = ({ businessId, locationId }) => businessId && `${businessId} ${locationId}`;
const notesOf = ({ notes }) => notes.map((note) => ` ${note[0].toUpperCase()}${note.slice(1)}.`).join("");

async function send(action, body) {
  remark("The worker reads the queue.");
  const { status, body: answer } = await ask(`dead-letters/${action}`, { method: "POST", body, withinMs: ACTION_WITHIN_MS })
    .catch(() => ({ body: {} }));
  const failure = `${answer.error ?? "The worker does not answer"}. ${body.apply ? "A part may be done: repeat it." : ""}`;
  remark(status === 200 ? "" : failure);
  return status === 200 ? answer : null;
}

// Append buttons to *parent*, by their titles.
function addButtons(parent, buttons) {
  const line = parent.appendChild(element("p", undefined, "buttons"));
  for (const [title, act] of Object.entries(buttons)) line.append(actionButton(title, act));
  return line;
}

// Show a section above the list; it gets the focus, and *opener* gets it back.
function open(content, buttons, opener) {
  clear("letters-opened");
  const shown = showSection(byId("letters-opened"), content);
  const close = () => {
    clear("letters-opened");
    (opener?.isConnected ? opener : byId("letters").elements[0]).focus();
  };
  addButtons(shown, { ...buttons, Close: close });
  shown.firstElementChild.tabIndex = -1;
  shown.firstElementChild.focus();
  return shown;
}

function look({ record, recordBase64, ...facts }, opener) {
  const edit = () => {
    const shown = open({ id: "letter", title: `Correct the dead letter of ${text(facts.failedAt, "time")}`, facts: withoutNothing(facts) }, {}, opener);
    editLetter(shown, { ...facts, record }, () => list());
  };
  const isEditable = record !== undefined && facts.source === "kinesis" && !facts.truncated && !facts.parts;
  const buttons = isEditable ? { "Edit and send again": edit } : {};
  const shown = open({ id: "letter", title: `Dead letter of ${text(facts.failedAt, "time")}`, facts: withoutNothing(facts) }, buttons, opener);
  showCode(shown, recordBase64 ? "Record in base64" : "Record", record ?? recordBase64);
}

// The letters of a plan or of its result, those that are alike in one row.
function rowsOf(letters) {
  const alike = new Map();
  for (const { count: number = 1, detail, messageId, failedAt, ...one } of letters) {
    const key = JSON.stringify(one);
    const row = alike.get(key) ?? { ...one, detail, tenant: tenantOf(one), count: 0 };
    row.count += number;
    alike.set(key, row);
  }
  return [...alike.values()];
}

function factsOfPlan(answer, number, shown) {
  const reasons = [...new Set(answer.letters.map((one) => one.reason).filter(Boolean))];
  const known = new Map(listed.letters.map((one) => [one.messageId, one]));
  const tenants = [...new Set(answer.letters.map((one) => tenantOf(known.get(one.messageId) ?? one)).filter(Boolean))];
  return withoutNothing({
    deadLetters: shown, left: count(answer.left), reasons: reasons.join(", "), tenants: tenants.slice(0, 5).join(", "),
    filter: text(filter) === "–" ? "" : text(filter), failedBefore: text(answer.until, "time"),
  });
}

// Show the plan of an action or, where *body* has it applied, the result.
async function act(action, body, opener) {
  const answer = await send(action, body);
  if (!answer) return;
  const [title, planned, done, before, consequence] = ACTIONS[action];
  const number = answer[body.apply ? done : planned];
  const shown = `${count(number)}${number === AT_ONCE ? " at first" : ""}`;
  const apply = async () => {
    const isWanted = await askInDialog({
      title: `${title} ${shown}?`, facts: factsOfPlan(answer, number, shown), note: consequence, button: `${title} ${shown}`,
    });
    if (isWanted) await act(action, { ...body, until: answer.until, apply: true }, opener);
  };
  open({
    id: "letters-plan", title: `${title}: ${shown} ${body.apply ? done : "planned"}, ${count(answer.left)} left`,
    note: `${body.apply ? "" : before}${notesOf(answer)}`, columns: PLANNED, rows: rowsOf(answer.letters),
  }, number && !body.apply ? { [`${title} ${shown} now`]: apply } : {}, opener);
  if (body.apply) await list();
}

// A time after all letters that failed in the millisecond of *at*: those of one batch have the same time.
const justAfter = (at) => new Date(Math.floor(new Date(at).getTime()) + 1).toISOString();

// Ask for the letters of the filter, the newest first; *older*: those behind the ones that are shown.
async function list(older = false) {
  if (!older) {
    clear("letters-found");
    listed = { letters: [], readAt: null, note: "" };
  }
  const startedAt = Date.now();
  const known = new Set(listed.letters.map((one) => one.messageId));
  const until = older ? justAfter(listed.letters.at(-1).failedAt) : filter.until;
  const answer = await send("list", withoutNothing({ ...filter, until, limit: LISTED + (older ? LISTED : 0), records: true, newest: true }));
  if (!answer) return;
  listed.letters.push(...answer.letters.filter((one) => !known.has(one.messageId)));
  listed.readAt = Date.now();
  const more = answer.isCut ? "; there are older ones" : "";
  listed.note = `${count(listed.letters.length)} shown${more}. Read from ${time(startedAt)} to ${time(listed.readAt)}.${notesOf(answer)}`;
  remark(listed.note);
  showListed(answer.isCut && listed.letters.length > known.size);
}

// Show what was read. Each button below names its subject: the chosen letters, or all that match.
function showListed(hasOlder) {
  clear("letters-found");
  if (!listed.letters.length) return;
  const chosen = new Set(); // message ids
  const choose = (id, isChosen) => {
    chosen[isChosen ? "add" : "delete"](id);
    const subject = chosen.size ? `${count(chosen.size)} chosen` : Object.keys(filter).length ? "all that match the filter" : "all";
    for (const [place, [title]] of Object.values(ACTIONS).entries()) setText(line.children[place], `Plan: ${title.toLowerCase()} ${subject}`);
  };
  const rows = listed.letters.map((one) => ({
    ...one, tenantId: one.businessId && `${one.businessId}-${one.locationId}`,
    failed: { id: one.messageId, label: text(one.failedAt, "time"), choose: (isChosen) => choose(one.messageId, isChosen) },
    look: { title: "Look", subject: one.messageId, act: (opener) => look(one, opener) },
  }));
  const shown = showSection(byId("letters-found"), { id: "letters-list", title: "Dead letters, the newest first", columns: LETTERS, rows });
  const wanted = () => (chosen.size ? { ...filter, messageIds: [...chosen] } : filter);
  const acts = Object.fromEntries(Object.keys(ACTIONS).map((action) => [action, (opener) => act(action, wanted(), opener)]));
  const line = addButtons(shown, hasOlder ? { ...acts, "Show older ones": () => list(true) } : acts);
  choose();
}

// Say how old the list is, once it is no longer that of the moment.
export function showLettersAge(now) {
  const shown = byId("section-letters-list");
  if (!shown || listed.readAt === null) return;
  const age = (now - listed.readAt) / 1000;
  shown.classList.toggle("stale", isStale(age));
  const old = isStale(age) ? `Read ${duration(age)} ago: list again for the present ones. ` : "";
  setText(shown.children[1], old);
  shown.children[1].hidden = !old;
}

export function closeLetters() {
  clear("letters-opened", "letters-found");
  listed = { letters: [], readAt: null, note: "" };
  remark("");
}

export function openLetters() {
  byId("letters").addEventListener("submit", (event) => {
    event.preventDefault();
    const [reason, businessId, locationId, since, until] = [...event.target.elements].map(({ value }) => value.trim());
    if (!businessId !== !locationId) return remark("Expected both ids of a tenant, got one of them.");
    const moment = (value) => value && new Date(value).toISOString();
    filter = withoutNothing({ reasons: reason && [reason], businessId, locationId, since: moment(since), until: moment(until) });
    clear("letters-opened");
    list();
  });
}
