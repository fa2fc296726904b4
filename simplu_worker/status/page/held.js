// Held targets and moves, each as one item, whatever the number of readers that name it. Pure.
import { ageOf, count, duration, isNothing, noun, plural, rough, text, time } from "./format.js";
import { linkOf } from "./router.js";

const READERS_SHOWN = 4;
const STALL_S = 30; // then the rate of before says nothing of the time that is left; progress is noted each few seconds
const STANDS_S = 900; // without progress though its command runs, as the worker counts

const othersOf = (fleet) => (fleet?.replicas ?? []).filter((one) => !one.isThis);
const longest = (rows, key) => Math.max(0, ...rows.map((one) => one[key] ?? 0));
const readerOf = ({ streamShard, replica }) => `${streamShard ?? "a stream shard"} (${replica ?? "this replica"})`;

// One row for each held target of any replica, the one that waits longest first.
export function heldOf(status, fleet) {
  const kept = status.retentionSeconds;
  const others = othersOf(fleet).flatMap(({ replica, isSilent, held = [] }) => (
    held.map((one) => ({ ...one, replica, isSilent }))
  ));
  const advice = { ...fleet?.heldAdvice, ...status.heldAdvice };
  const byTarget = new Map();
  for (const one of [...status.held ?? [], ...others]) byTarget.set(one.target, [...byTarget.get(one.target) ?? [], one]);
  return [...byTarget].map(([target, rows]) => {
    const tenantIds = [...new Set(rows.flatMap((one) => one.tenantIds ?? []))].sort();
    const reasons = [...new Set(rows.map((one) => one.reason))];
    return {
      target, reasons, tenantIds,
      states: [...new Set(rows.map((one) => one.state).filter(Boolean))],
      tenants: Math.max(tenantIds.length, longest(rows, "tenants")),
      operations: rows.reduce((total, one) => total + (one.operations ?? 0), 0),
      ageSeconds: longest(rows, "ageSeconds"),
      heldForSeconds: longest(rows, "heldForSeconds"),
      expiresInSeconds: isNothing(kept) ? null : Math.max(0, kept - longest(rows, "ageSeconds")),
      readers: rows.map(readerOf),
      isGrey: rows.every((one) => one.isSilent),
      ...advice[reasons[0]],
    };
  }).sort((one, other) => other.ageSeconds - one.ageSeconds);
}

// How many targets the others hold and do not name.
export const unnamedElsewhere = (fleet) => othersOf(fleet)
  .reduce((total, { heldTargets, held = [] }) => total + Math.max(0, (heldTargets ?? 0) - held.length), 0);

const listed = (names, most) => (names.length > most ? `${names.slice(0, most).join(", ")} and ${names.length - most} more` : names.join(", "));

export function factsOfHeld(one) {
  const since = new Date(Date.now() - 1000 * one.ageSeconds);
  return Object.fromEntries(Object.entries({
    "Oldest waits": `${duration(one.ageSeconds)}, since ${time(since)}`,
    "Expires in": isNothing(one.expiresInSeconds) ? "not known" : rough(one.expiresInSeconds),
    Held: one.heldForSeconds ? `for ${duration(one.heldForSeconds)}` : "",
    State: one.states.filter((state) => state !== "held").join(", "),
    Operations: one.operations ? `at least ${count(one.operations)}` : "",
    Tenants: one.tenants ? count(one.tenants) : "",
    [noun(one.readers.length, "Reader")]: listed(one.readers, READERS_SHOWN),
  }).filter(([, value]) => value));
}

// A held target as an item; *retry* makes the button of an operator.
export function heldItem(one, retry) {
  const unnamed = one.tenants - one.tenantIds.length;
  const links = one.tenantIds.map((tenant) => ({ ...linkOf(`tenant ${tenant}`), text: tenant }));
  if (unnamed > 0) links.push({ text: `and ${count(unnamed)} more` });
  return {
    id: one.target, tone: "warn", badge: one.reasons.map((reason) => text(reason).replace(/_/g, " ")).join(", "), title: "",
    links: [linkOf(one.target)], facts: factsOfHeld(one), advice: one.advice, runbook: one.runbook, isGrey: one.isGrey,
    more: one.target.startsWith("tenant ") || !one.tenantIds.length ? null : { title: `Its ${plural(one.tenants, "tenant")}`, links },
    buttons: retry ? [retry(one)] : [],
  };
}

// How long the copy of a move still takes, by its rows so far; null where that is not known.
export function secondsLeft({ rows, startedAt, notedAt, phase }, total) {
  const took = ageOf(startedAt, new Date(notedAt).getTime());
  if (!rows || !took || ageOf(notedAt) > STALL_S || isNothing(total) || !/^(prepare|copy)$/.test(phase ?? "")) return null;
  return Math.max(0, ((total - rows) * took) / rows);
}

const quoted = (word) => (/^[\w.:@%+=-]+$/.test(word) ? word : `'${word.replace(/'/g, "'\\''")}'`);

// The commands that go on with a move and undo it, or begin one; *tenant* is the answer about it.
export function moveCommands({ businessId, locationId }, targetShard) {
  const tenant = `${quoted(businessId)} ${quoted(locationId)}`;
  return {
    move: `simplu-worker tenants move ${tenant} --to ${quoted(targetShard)} --apply`,
    undo: `simplu-worker tenants rollback ${tenant} --apply`,
  };
}

const hasEnded = ({ error, isRunning }) => Boolean(error) || isRunning === false; // its command

// Whether a move needs a person.
export const stands = (one) => hasEnded(one) || ageOf(one.notedAt) > STANDS_S;

function factsOfMove(one, tenant) {
  const total = tenant?.resources;
  const left = secondsLeft(one, total);
  return Object.fromEntries(Object.entries({
    From: `${one.sourceShard} to ${one.targetShard}`,
    Rows: isNothing(one.rows) ? "" : `${count(one.rows)}${isNothing(total) ? "" : ` of about ${count(total)}`}`,
    Copied: isNothing(one.bytes) ? "" : text(one.bytes, "bytes"),
    "Time left": stands(one) ? "" : left === null ? "not known" : `about ${duration(left)}`,
    Began: time(one.startedAt),
    "Last progress": `${time(one.notedAt)}${stands(one) ? `, ${duration(ageOf(one.notedAt))} ago` : ""}`,
    Command: hasEnded(one) ? "has ended" : one.isRunning ? "runs" : "",
    Error: one.error ?? "",
  }).filter(([, value]) => value));
}

// A move as an item; *tenants* are the answers about tenants, by id.
export function moveItem(one, tenants) {
  const known = one.businessId && moveCommands(one, one.targetShard);
  const state = one.phase ?? one.step;
  return {
    id: one.tenant, tone: stands(one) ? "bad" : "",
    badge: hasEnded(one) ? `stopped: ${state}` : stands(one) ? `no progress: ${state}` : state, title: "Move of",
    links: [linkOf(`tenant ${one.tenant}`)], facts: factsOfMove(one, tenants[one.tenant]),
    advice: stands(one) ? "Run the same command again to continue the move, or undo it." : "Nothing to do. To stop it, undo it.",
    runbook: one.runbook, commands: known ? { ...(stands(one) ? { Continue: known.move } : {}), Undo: known.undo } : null,
  };
}
