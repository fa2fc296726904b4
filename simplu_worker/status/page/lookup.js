// A tenant and its last operations, and an operation by its id.
import { ask } from "./client.js";
import { byId, setText, showCode, showSection } from "./dom.js";
import { columnsOf, count, isNothing, text, withoutNothing } from "./format.js";

const LISTED = 200; // of them the outcomes are counted
const SHOWN = 20;
const OPERATIONS = columnsOf("completedAt:time:Completed", "status:badge", "operation",
  "resourceType:text:Type", "resourceId:text:Resource", "error:long", "requestId");

const LEVERS = columnsOf("pausedUntil:time:Paused until", "weight", "lever:action:Action");
let actions = { isOperator: () => false, act: () => {} };

const queryOf = (members) => new URLSearchParams(withoutNothing(members)).toString();

function remark(message) {
  setText(byId("lookup-notice"), message);
}

function outcomesOf(operations) {
  const counts = {};
  for (const { status, error } of operations) {
    const outcome = error && status === "failed" ? `failed, ${error}` : status;
    counts[outcome] = (counts[outcome] ?? 0) + 1;
  }
  return Object.entries(counts).map(([outcome, number]) => `${outcome} ${count(number)}`).join("; ");
}

// What an operator may do with a tenant.
function leversOf(path, name, { pausedUntil }) {
  return pausedUntil
    ? { title: "Resume", subject: name, act: () => actions.act(`Resume ${name}? Its operations go on.`, `${path}/resume`) }
    : { title: "Pause for 4 hours", subject: name, act: () => actions.act(`Pause ${name}? Its operations wait in the stream and the queues.`, `${path}/pause`) };
}

async function showTenant(businessId, locationId) {
  const path = `tenants/${encodeURIComponent(businessId)}/${encodeURIComponent(locationId)}`;
  const asked = { businessId, locationId };
  const [tenant, latest, failed] = await Promise.all([
    ask(path),
    ask(`operations?${queryOf({ ...asked, limit: LISTED })}`),
    ask(`operations?${queryOf({ ...asked, limit: SHOWN, status: "failed" })}`),
  ]);
  const { resources, operations: logged, held, pausedUntil, weight, ...facts } = tenant.body;
  const operations = latest.body.operations ?? [];
  const title = `Tenant ${businessId} ${locationId}`;
  showSection(byId("found"), {
    id: "tenant", title,
    facts: {
      ...facts,
      ...withoutNothing({ pausedUntil: pausedUntil && text(pausedUntil, "time"), weight: weight === 1 ? null : weight }),
      ...(isNothing(resources) ? {} : { resources: count(resources), operationsInTheLog: count(logged ?? 0) }),
      ...(operations.length ? { [`last${operations.length}Operations`]: outcomesOf(operations) } : {}),
      held: held ? `${held.reason}${held.since ? ` since ${text(held.since, "time")}` : ""}. ${held.advice ?? ""}` : "no",
      ...withoutNothing({ runbook: held?.runbook }),
    },
  });
  if (tenant.status !== 200) return;
  if (actions.isOperator()) {
    const lever = leversOf(path, `${businessId} ${locationId}`, tenant.body);
    showSection(byId("found"), { id: "tenant-levers", title: `Levers of ${businessId} ${locationId}`, columns: LEVERS, rows: [{ ...tenant.body, lever }] });
  }
  for (const [id, what, { status: code, body }] of [["errors", "failed operations", failed], ["operations", "operations", latest]]) {
    const rows = (body.operations ?? []).slice(0, SHOWN);
    const note = code === 200 ? rows.length ? "" : "None." : body.error ?? "No answer.";
    showSection(byId("found"), { id: `tenant-${id}`, title: `Last ${what} of ${businessId} ${locationId}`, columns: OPERATIONS, rows, note });
  }
}

async function showOperation(requestId, businessId, locationId) {
  const query = queryOf({ businessId, locationId });
  const { body } = await ask(`operations/${encodeURIComponent(requestId)}${query ? `?${query}` : ""}`);
  const { result, ...facts } = body;
  const shown = showSection(byId("found"), { id: "operation", title: `Operation ${requestId}`, facts });
  if (!isNothing(result)) showCode(shown, "Result", JSON.stringify(result, null, 2));
}

function close() {
  byId("found").replaceChildren();
  byId("close-lookup").hidden = true;
  remark("Both ids of a tenant, the request id of an operation, or all three.");
}

// Have the form ask the worker; an operator acts by what *given* has.
export function openLookup(given) {
  actions = given;
  close();
  byId("lookup").addEventListener("submit", async (event) => {
    event.preventDefault();
    const [businessId, locationId, requestId] = ["business", "location", "request"].map((id) => byId(id).value.trim());
    if (Boolean(businessId) !== Boolean(locationId)) return remark("Expected both ids of a tenant, got one of them.");
    if (!businessId && !requestId) return remark("Expected the ids of a tenant, or a request id.");
    close();
    remark("Asking the shards.");
    try {
      if (requestId) await showOperation(requestId, businessId, locationId);
      if (businessId) await showTenant(businessId, locationId);
      remark(`Read at ${new Date().toLocaleTimeString()}.`);
      byId("close-lookup").hidden = false;
    } catch {
      remark("The worker does not answer. Ask again.");
    }
  });
  byId("close-lookup").addEventListener("click", close);
}

export const closeLookup = close;
