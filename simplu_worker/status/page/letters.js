// Dead letters, for operators: list, look, choose; then a plan, and only after it the replay or the discard.
import { ask } from "./client.js";
import { actionButton, byId, element, setText, showCode, showSection } from "./dom.js";
import { columnsOf, count, text, withoutNothing } from "./format.js";

const LISTED = 200;
const AT_ONCE = 1000; // of a plan
const WITHIN_MS = 65000; // the worker takes 60 s at most
const LETTERS = columnsOf("failed:choice", "reason:warning", "tenant", "error:long", "name:text:Source",
  "requestId", "recordBytes:bytes:Size", "look:action:Action");
const PLANNED = columnsOf("reason:warning", "count:number", "tenant", "name:text:Source", "status:text:Outcome",
  "why", "detail:long");
// The title of an action, the members of its plan and of its result with a number, and a remark on its plan.
const ACTIONS = {
  replay: ["Replay", "wouldSend", "sent", "Nothing is sent yet."],
  discard: ["Discard", "wouldDiscard", "discarded", "Nothing is deleted yet. The records are then only in the stream, until its retention ends."],
};
let filter = {};

const remark = (message) => setText(byId("letters-notice"), message);
const clear = (...ids) => ids.forEach((id) => byId(id).replaceChildren());
const tenantOf = ({ businessId, locationId }) => businessId && `${businessId} ${locationId}`;
const notesOf = ({ notes }) => notes.map((note) => ` ${note[0].toUpperCase()}${note.slice(1)}.`).join("");

async function send(action, body) {
  remark("The worker reads the queue.");
  const { status, body: answer } = await ask(`dead-letters/${action}`, { method: "POST", body, withinMs: WITHIN_MS })
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
  const shown = open({ id: "letter", title: `Dead letter of ${text(facts.failedAt, "time")}`, facts: withoutNothing(facts) }, {}, opener);
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

// Show the plan of an action or, where *body* has it applied, the result.
async function act(action, body, opener) {
  const answer = await send(action, body);
  if (!answer) return;
  const [title, planned, done, before] = ACTIONS[action];
  const number = answer[body.apply ? done : planned];
  const shown = `${count(number)}${number === AT_ONCE ? " at first" : ""}`;
  const apply = () => act(action, { ...body, until: answer.until, apply: true }, opener);
  open({
    id: "letters-plan", title: `${title}: ${shown} ${body.apply ? done : "planned"}, ${count(answer.left)} left`,
    note: `${body.apply ? "" : before}${notesOf(answer)}`, columns: PLANNED, rows: rowsOf(answer.letters),
  }, number && !body.apply ? { [`${title} ${shown} now`]: apply } : {}, opener);
  if (body.apply) await list();
}

// Show the letters of the filter. Each button below names its subject: the chosen ones, or all that match.
async function list() {
  clear("letters-found");
  const answer = await send("list", { ...filter, limit: LISTED, records: true });
  if (!answer) return;
  const chosen = new Set(); // message ids
  const choose = (id, isChosen) => {
    chosen[isChosen ? "add" : "delete"](id);
    const subject = chosen.size ? `${count(chosen.size)} chosen` : "all that match";
    for (const [place, [title]] of Object.values(ACTIONS).entries()) setText(line.children[place], `${title} ${subject}: plan`);
  };
  const rows = answer.letters.reverse().map((one) => ({
    ...one, tenant: tenantOf(one),
    failed: { id: one.messageId, label: text(one.failedAt, "time"), choose: (isChosen) => choose(one.messageId, isChosen) },
    look: { title: "Look", subject: one.messageId, act: (opener) => look(one, opener) },
  }));
  remark(`${count(rows.length)} found${answer.isCut ? "; the queue has more: narrow the filter" : ""}.${notesOf(answer)}`);
  if (!rows.length) return;
  const shown = showSection(byId("letters-found"), { id: "letters-list", title: "Dead letters, the newest first", columns: LETTERS, rows });
  const wanted = () => (chosen.size ? { ...filter, messageIds: [...chosen] } : filter);
  const line = addButtons(shown, Object.fromEntries(Object.keys(ACTIONS).map((action) => [action, (opener) => act(action, wanted(), opener)])));
  choose();
}

export function closeLetters() {
  clear("letters-opened", "letters-found");
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
