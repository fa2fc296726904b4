// A tenant and its last operations, and an operation by its id.
import { ask } from "./client.js";
import { byId, setText, showCode, showSection } from "./dom.js";
import { columnsOf, count, isNothing, text, time, withoutNothing } from "./format.js";
import { moveCommands, moveItem } from "./held.js";
import { showItems } from "./items.js";
import { hrefOf } from "./router.js";

const LISTED = 200; // of them the outcomes are counted
const SHOWN = 20;
const OPERATIONS = columnsOf("completedAt:time:Completed", "status:badge", "operation",
  "resourceType:text:Type", "resourceId:text:Resource", "error:long", "requestId");

const CONTROLS = columnsOf("pausedUntil:time:Paused until", "weight", "controls:action:Action");

function ofBusiness(business) {
  const { weight, operationsPerSecond, bytesPerSecond } = business ?? {};
  return withoutNothing({ businessWeight: weight === 1 ? null : weight, businessOperationsPerSecond: operationsPerSecond, businessBytesPerSecond: bytesPerSecond });
}
let actions = { isOperator: () => false, act: () => {}, shards: () => [] };
let found = { sections: [], readAt: null }; // what is shown, and when it was read
let turn = 0; // a later request makes the answers to an earlier one void

const queryOf = (members) => new URLSearchParams(withoutNothing(members)).toString();
const FIELDS = ["business", "location", "request"];

function remark(message) {
  setText(byId("lookup-notice"), message);
}

function keep(section) {
  found.sections.push(section);
  return showSection(byId("found"), section);
}

// Have what was read be grey once it is old.
export function showLookupAge(now) {
  if (found.readAt === null) return;
  for (const one of found.sections) showSection(byId("found"), { ...one, age: (now - found.readAt) / 1000 });
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
function controlOf(path, name, tenant) {
  const { shardId, state, resources, weight, pausedUntil, held } = tenant;
  const facts = withoutNothing({ tenant: name, shardId, state, resources: resources && count(resources), weight, pausedUntil, held: held ? held.reason : "no" });
  const [title, note, verb] = pausedUntil
    ? ["Resume", "Its operations continue, the waiting ones first.", "resume"]
    : ["Pause for 4 hours", "Its operations wait in the stream and in the queues, in order; nothing is lost within their retention.", "pause"];
  return {
    title, subject: name,
    act: async () => await actions.act({ title: `${title}: ${name}?`, facts, note, button: title }, `${path}/${verb}`) && lookUp(`${tenant.businessId}-${tenant.locationId}`),
  };
}

// The shard with most room, to which a person may move a tenant.
function targetOf(shardId) {
  const others = actions.shards().filter((one) => one.shardId !== shardId && one.state === "healthy");
  return others.sort((one, other) => (one.usage ?? 0) - (other.usage ?? 0))[0]?.shardId ?? "SHARD";
}

function showMove(tenant) {
  const id = `${tenant.businessId}-${tenant.locationId}`;
  const going = actions.moves().find((one) => one.tenant === id);
  if (going) return showItems(byId("found"), { id: "tenant-move", title: "Its move", items: [moveItem(going, { [id]: tenant })] });
  const { move, undo } = moveCommands(tenant, targetOf(tenant.shardId));
  return showItems(byId("found"), {
    id: "tenant-move", title: "Move it by a command", note: "Without --apply each prints its plan: rows, time, and what would stop it.",
    items: [{ id: "move", tone: "", badge: "command", title: `From ${tenant.shardId}`, facts: {}, commands: { Move: move, Undo: undo } }],
  });
}

async function showTenant(businessId, locationId) {
  const path = `tenants/${encodeURIComponent(businessId)}/${encodeURIComponent(locationId)}`;
  const asked = { businessId, locationId };
  const [tenant, latest, failed] = await Promise.all([
    ask(path),
    ask(`operations?${queryOf({ ...asked, limit: LISTED })}`),
    ask(`operations?${queryOf({ ...asked, limit: SHOWN, status: "failed" })}`),
  ]);
  return () => {
    const { resources, operations: logged, held, pausedUntil, weight, business, ...facts } = tenant.body;
    const operations = latest.body.operations ?? [];
    keep({
      id: "tenant", title: `Tenant ${businessId} ${locationId}`,
      facts: {
        ...withoutNothing(facts),
        ...withoutNothing({ pausedUntil: pausedUntil && text(pausedUntil, "time"), weight: weight === 1 ? null : weight, ...ofBusiness(business) }),
        ...(isNothing(resources) ? {} : { resources: count(resources), operationsInTheLog: count(logged ?? 0) }),
        ...(operations.length ? { lastOperations: `of ${count(operations.length)}: ${outcomesOf(operations)}` } : {}),
        held: held ? `${held.reason}${held.since ? ` since ${text(held.since, "time")}` : ""}. ${held.advice ?? ""}` : "no",
        ...withoutNothing({ runbook: held?.runbook }),
      },
    });
    if (tenant.status !== 200) return;
    if (actions.isOperator()) {
      const controls = controlOf(path, `${businessId} ${locationId}`, tenant.body);
      keep({ id: "tenant-controls", title: `Actions for ${businessId} ${locationId}`, columns: CONTROLS, rows: [{ ...tenant.body, controls }] });
    }
    for (const [id, what, { status: code, body }] of [["errors", "failed operations", failed], ["operations", "operations", latest]]) {
      const rows = (body.operations ?? []).slice(0, SHOWN);
      const note = code === 200 ? rows.length ? "" : "None." : body.error ?? "No answer.";
      keep({ id: `tenant-${id}`, title: `Last ${what} of ${businessId} ${locationId}`, columns: OPERATIONS, rows, note });
    }
    showMove(tenant.body);
  };
}

async function showOperation(requestId, businessId, locationId) {
  const query = queryOf({ businessId, locationId });
  const { body } = await ask(`operations/${encodeURIComponent(requestId)}${query ? `?${query}` : ""}`);
  return () => {
    const { result, ...facts } = body;
    const shown = keep({ id: "operation", title: `Operation ${requestId}`, facts });
    if (!isNothing(result)) showCode(shown, "Result", JSON.stringify(result, null, 2));
  };
}

function close() {
  turn += 1;
  found = { sections: [], readAt: null };
  byId("found").replaceChildren();
  byId("close-lookup").hidden = true;
  remark("Both ids of a tenant, the request id of an operation, or all three.");
}

async function read(businessId, locationId, requestId) {
  close();
  const mine = turn;
  remark("Asking the shards.");
  try {
    const wanted = [requestId && showOperation(requestId, businessId, locationId), businessId && showTenant(businessId, locationId)];
    const made = await Promise.all(wanted.filter(Boolean));
    if (mine !== turn) return;
    found.readAt = Date.now();
    for (const showIt of made) showIt();
    remark(`Read at ${time(new Date())}.`);
    byId("close-lookup").hidden = false;
  } catch {
    if (mine === turn) remark("The worker does not answer. Ask again.");
  }
}

const valuesOf = () => FIELDS.map((id) => byId(id).value.trim());

// Show a tenant by its id, which does not tell its two ids: the form may, or the worker does.
export async function lookUp(tenantId) {
  if (!tenantId) return close();
  const [business, location, requestId] = valuesOf();
  if (business && `${business}-${location}` === tenantId) return read(business, location, requestId);
  close();
  const mine = turn;
  remark("Asking the shards.");
  const { body } = await ask(`tenants/${encodeURIComponent(tenantId)}`).catch(() => ({ body: { error: "The worker does not answer. Ask again." } }));
  if (mine !== turn) return null;
  if (body.businessId) {
    for (const [place, value] of [body.businessId, body.locationId, ""].entries()) byId(FIELDS[place]).value = value;
    return read(body.businessId, body.locationId, "");
  }
  found.readAt = Date.now();
  const { held, ...facts } = body;
  keep({ id: "tenant", title: `Tenant ${tenantId}`, facts: { ...facts, held: held ? `${held.reason}. ${held.advice ?? ""}` : "no", ...withoutNothing({ runbook: held?.runbook }) } });
  byId("close-lookup").hidden = false;
  return remark(body.error ?? "");
}

// Have the form ask the worker; an operator acts by what *given* has.
export function openLookup(given) {
  actions = given;
  close();
  byId("lookup").addEventListener("submit", (event) => {
    event.preventDefault();
    const [businessId, locationId, requestId] = valuesOf();
    if (Boolean(businessId) !== Boolean(locationId)) return remark("Expected both ids of a tenant, got one of them.");
    if (!businessId && !requestId) return remark("Expected the ids of a tenant, or a request id.");
    const address = businessId ? hrefOf("tenants", `${businessId}-${locationId}`) : location.hash;
    if (location.hash === address) return read(businessId, locationId, requestId);
    location.hash = address; // the new address looks it up
    return null;
  });
  byId("close-lookup").addEventListener("click", () => {
    close();
    for (const id of FIELDS) byId(id).value = "";
    location.hash = hrefOf("tenants");
  });
}

export const closeLookup = close;
