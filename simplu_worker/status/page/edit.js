// A dead letter that a person corrects: the text, a preview with the present row and later operations, then the sending.
import { ACTION_WITHIN_MS, ask } from "./client.js";
import { askInDialog } from "./dialog.js";
import { actionButton, byId, element, setText, showCode, showSection } from "./dom.js";
import { columnsOf, count, text, withoutNothing } from "./format.js";

const LATER_SHOWN = 20;
const ROWS = 12;
const LATER = columnsOf("completedAt:time:Completed", "status:badge", "operation", "error:long", "requestId");

const pathOf = (...parts) => parts.map(encodeURIComponent).join("/");

const TOKENS = /"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s"{}[\],:]+/g; // of JSON

// The record as people edit it, with each member on a line of its own; one that is no JSON stays as it is. Of its tokens
// none changes: numbers keep all digits, and two members of one name stay two.
function prettyOf(record) {
  try {
    JSON.parse(record);
  } catch {
    return record;
  }
  let [shown, depth, before] = ["", 0, ""];
  const line = () => `\n${"  ".repeat(depth)}`;
  for (const [token] of record.matchAll(TOKENS)) {
    const [opens, closes] = [before === "{" || before === "[", token === "}" || token === "]"];
    if (closes) depth -= 1;
    if (closes ? !opens : opens || before === ",") shown += line();
    shown += before === ":" ? ` ${token}` : token;
    if (token === "{" || token === "[") depth += 1;
    before = token;
  }
  return shown;
}

async function post(body) {
  const { status, body: answer } = await ask("dead-letters/edit", { method: "POST", body, withinMs: ACTION_WITHIN_MS }).catch(() => ({ body: {} }));
  return status === 200 ? { answer } : { error: `${answer.error ?? "The worker does not answer"}.${body.apply && !answer.error ? " It may be sent: repeat it, nothing is sent twice." : ""}` };
}

// What the shard has now for the resource, and what was applied to it since the record arrived.
async function readPresent({ businessId, locationId, resourceType, resourceId, arrivedAt }) {
  if (!resourceId) return {};
  const query = new URLSearchParams({ businessId, locationId, resourceType, resourceId, since: arrivedAt, limit: LATER_SHOWN });
  const [row, later] = await Promise.all([
    ask(`resources/${pathOf(businessId, locationId, resourceType, resourceId)}`).catch(() => ({ body: {} })),
    ask(`operations?${query}`).catch(() => ({ body: {} })),
  ]);
  return { row, later };
}

function showPresent(parent, plan, { row, later }) {
  if (!row) return;
  const { data, exists, ...facts } = row.body;
  const title = `The present row of ${plan.resourceType} ${plan.resourceId}`;
  const note = row.status !== 200 ? `Not known: ${row.body.error ?? row.body.state ?? "no answer"}.` : exists ? "" : "There is none.";
  const shown = showSection(parent, { id: "present-row", title, note, ...(exists ? { facts: withoutNothing(facts) } : { rows: [] }) });
  if (exists) showCode(shown, "Present row", data ? JSON.stringify(data, null, 2) : "Too long to be shown here.");
  const rows = later.body.operations ?? [];
  const most = rows.length === LATER_SHOWN ? `the last ${LATER_SHOWN}` : count(rows.length);
  showSection(parent, {
    id: "later-operations", title: "Operations on it since the record arrived", columns: LATER, rows,
    note: later.status !== 200 ? `Not known: ${later.body.error ?? "no answer"}.` : rows.length ? `Applied already: ${most}. Is the corrected record still right after them?` : "None.",
  });
}

// Have a person edit the record of *letter* below *parent*; *sent* is called once it was sent.
export function editLetter(parent, letter, sent) {
  const label = element("label", "The record to send in place of this one", "field record");
  const area = label.appendChild(element("textarea"));
  area.rows = ROWS;
  area.spellcheck = false;
  area.value = prettyOf(letter.record);
  const notice = element("p", "It gets a new request id, so that it is applied as another operation.", "none");
  notice.setAttribute("role", "status");
  const plan = element("div");
  const preview = actionButton("Preview", async () => {
    plan.replaceChildren();
    setText(notice, "The worker reads the queue.");
    const asked = area.value;
    const { answer, error } = await post({ messageId: letter.messageId, record: asked });
    if (error) return setText(notice, error);
    const present = await readPresent(answer);
    if (area.value !== asked) return setText(notice, "The text has changed since: preview it again.");
    setText(notice, "Nothing is sent yet.");
    return showPlan(answer, present, asked);
  });
  area.addEventListener("input", () => {
    plan.replaceChildren();
    setText(notice, "Preview it before it is sent.");
  });

  function showPlan(answer, present, record) {
    const { applied, sent: _, notes, arrivedAt, ...facts } = answer;
    showSection(plan, { id: "edit-plan", title: "What would be sent", facts: withoutNothing(facts), note: notes.join("; ") });
    showPresent(plan, answer, present);
    const later = present.later?.body.operations?.length ?? 0;
    plan.append(actionButton("Send it now", async () => {
      const isWanted = await askInDialog({
        title: "Send the corrected record?", button: "Send it",
        facts: withoutNothing({ ...facts, laterOperations: count(later), presentRow: present.row ? (present.row.body.exists ? "there is one" : "none") : "" }),
        note: "It is applied as a new operation, after all that was applied already. The dead letter is deleted; the log links both request ids.",
      });
      if (!isWanted) return;
      const { answer: done, error } = await post({ messageId: letter.messageId, record, requestId: answer.requestId, apply: true });
      if (error) return setText(notice, error);
      plan.replaceChildren();
      label.remove();
      preview.remove();
      setText(notice, `Sent as ${text(done.requestId)}, in place of ${text(done.oldRequestId)}.${done.notes.map((note) => ` ${note}.`).join("")}`);
      byId("section-letter").firstElementChild.focus();
      sent();
    }));
  }
  parent.append(label, notice, preview, plan);
  area.focus();
}
