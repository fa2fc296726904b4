// The status of the worker and of its fleet, as sections of tables. Pure.
import { count, duration, isNothing, text } from "./format.js";

const HELD_SHOWN = 50;

const column = (key, title, kind = "text") => ({ key, title, kind });
const withoutZeros = (counts) => Object.fromEntries(Object.entries(counts ?? {}).filter(([, one]) => one));
const sum = (values) => values.filter((one) => typeof one === "number").reduce((total, one) => total + one, 0);
const maximum = (values) => values.filter((one) => typeof one === "number").reduce((top, one) => Math.max(top ?? 0, one), null);
const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

// The stream shards with all that the fleet and this replica know of each.
export function streamShardsOf(status, fleet, traces) {
  const own = new Map((status.streamShards ?? []).map((one) => [one.streamShard, one]));
  const rows = fleet?.streamShards ?? [...own.values()];
  return rows.map((one) => {
    const here = own.get(one.streamShard) ?? {};
    const trace = traces.get(one.streamShard);
    return {
      ...here,
      ...one,
      held: isNothing(here.held) ? one.heldTargets || null : here.held,
      lagChart: trace && { points: trace.lag, label: `Lag of ${one.streamShard} since this page is open` },
      rateChart: trace?.rate.some((rate) => rate !== null)
        ? { points: trace.rate, label: `Records a second of ${one.streamShard} since this page is open` } : null,
    };
  });
}

// The queues as SQS reports them, with all that their receivers know. Which one takes dead letters: the target of a redrive.
export function queuesOf(status, queues) {
  const received = new Map((status.queues ?? []).map((one) => [one.name, one]));
  const rows = queues ?? [...received.values()];
  return rows.map((one) => {
    const here = received.get(one.name) ?? {};
    const isDead = one.consumed === false;
    return {
      ...one,
      ...here,
      name: one.name,
      kind: one.isFifo === undefined ? null : one.isFifo ? "FIFO" : "standard",
      state: isDead ? "dead letters" : here.state ?? one.state,
      visible: one.visible ?? here.visible,
      outcomes: withoutZeros(here.outcomes ?? one.outcomes),
      redriveTo: one.redrive ? `${one.redrive.queue}, after ${one.redrive.maxReceiveCount} receives` : null,
      isDead,
    };
  });
}

const shardRow = ({ tenantCount, connections, connectionsUsed, connectionsMax, error, odd, lastAnswer, ...shard }) => ({
  ...shard,
  problems: isNothing(odd) ? error : text(odd),
  tenants: tenantCount ?? lastAnswer?.tenantCount,
  own: isNothing(connections) ? null : `${connections.open} open, ${connections.idle} idle${connections.waiting ? `, ${connections.waiting} waiting` : ""}`,
  server: isNothing(connectionsUsed) ? null : `${connectionsUsed} of ${connectionsMax ?? "?"}`,
  lastAnswerAt: lastAnswer?.at,
});

function summaryOf(held) {
  const counts = new Map();
  for (const { reason, target } of held) counts.set(reason, (counts.get(reason) ?? new Set()).add(target));
  return [...counts].map(([reason, targets]) => `${reason} ${targets.size}`).join(", ");
}

// Moves, catch-ups and upgrades that are under way.
function workOf(status) {
  const work = [];
  for (const { tenant, sourceShard, targetShard, step, phase, rows, bytes, startedAt, notedAt, error } of status.moves ?? []) {
    const moved = isNothing(rows) ? "" : `, ${plural(rows, "row")}, ${text(bytes, "bytes")}`;
    const detail = error ?? `${sourceShard} to ${targetShard}${moved}`;
    work.push({ kind: "move", subject: `tenant ${tenant}`, state: error ? "failed" : phase ?? step, detail, startedAt, notedAt });
  }
  for (const one of status.held ?? []) {
    if (one.reason !== "moving") continue;
    work.push({ kind: "fenced for a move", subject: one.target, state: one.state, seconds: one.heldForSeconds });
  }
  for (const { streamShard, catchUps = [] } of status.streamShards ?? []) {
    for (const one of catchUps) {
      const detail = `${streamShard}: ${plural(one.records, "record")}, ${count(one.recordsPerSecond)}/s`;
      work.push({ kind: "catch-up", subject: text(one.targets), state: `${duration(one.behindMainSeconds)} behind`, detail });
    }
  }
  const versions = (status.shards ?? []).map((one) => one.schemaVersion).filter((one) => typeof one === "number");
  const newest = Math.max(...versions, 0);
  for (const { shardId, schemaVersion } of status.shards ?? []) {
    if (typeof schemaVersion !== "number" || schemaVersion === newest) continue;
    work.push({ kind: "upgrade", subject: `shard ${shardId}`, state: "due", detail: `schema ${schemaVersion}, others have ${newest}` });
  }
  return work;
}

export function sectionsOf(status, { fleet, queues, traces, actions }) {
  const held = [...(status.held ?? [])].sort((one, other) => other.ageSeconds - one.ageSeconds);
  const streamShards = streamShardsOf(status, fleet, traces);
  const more = held.length > HELD_SHOWN ? ` The oldest ${HELD_SHOWN} are shown.` : "";
  return [
    {
      id: "held", title: "Held targets", isHidden: !held.length,
      note: `${summaryOf(held)}. Their operations wait in the stream; all others go on.${more}`,
      columns: [column("target", "Target"), column("reason", "Reason", "warning"), column("state", "State", "badge"),
        column("ageSeconds", "Age", "seconds"), column("advice", "What to do", "advice"), column("runbook", "Runbook"),
        column("tenants", "Tenants", "number"), column("heldForSeconds", "Held for", "seconds"),
        column("streamShard", "Stream shard"), column("position", "Position", "code"), column("retry", "Action", "action")],
      rows: held.slice(0, HELD_SHOWN).map((one) => ({ ...one, ...status.heldAdvice?.[one.reason], retry: actions?.retry(one) })),
    },
    {
      id: "work", title: "Moves, catch-ups and upgrades in progress", rows: workOf(status),
      columns: [column("kind", "Kind"), column("subject", "Subject", "long"), column("state", "State", "badge"),
        column("detail", "Detail", "advice"), column("startedAt", "Since", "time"), column("notedAt", "Went on at", "time"), column("seconds", "For", "seconds")],
    },
    {
      id: "shards", title: "Shards", rows: (status.shards ?? []).map(shardRow), note: status.shards?.length ? "" : "No shard is known yet.",
      columns: [column("shardId", "Shard"), column("state", "State", "badge"), column("problems", "Problems", "long"),
        column("role", "Role"), column("responseMs", "Response", "ms"), column("tenants", "Tenants", "number"), column("usage", "Usage", "ratio"),
        column("server", "Connections of the server"), column("own", "Ours"),
        column("replicationLagSeconds", "Replication lag", "seconds"), column("schemaVersion", "Schema", "number"),
        column("lastCheckAt", "Checked", "time"), column("lastAnswerAt", "Last answer", "time"), column("place", "Place")],
    },
    {
      id: "replicas", title: "Replicas", rows: (fleet?.replicas ?? []).map((one) => ({ ...one, replica: one.isThis ? `${one.replica} (this one)` : one.replica })),
      columns: [column("replica", "Replica"), column("version", "Version"), column("leases", "Leases", "number"), column("lagSeconds", "Lag", "lag"),
        column("recordsPerSecond", "Records", "rate"), column("readKBps", "Read", "kbps"), column("heldTargets", "Held", "number"),
        column("seenSecondsAgo", "Seen ago", "seconds")],
    },
    {
      id: "stream", title: "Stream shards", isHidden: !streamShards.length,
      rows: streamShards.map((one) => ({ ...one, release: actions?.release(one) })),
      columns: [column("streamShard", "Stream shard"), column("state", "State", "badge"), column("lagSeconds", "Lag", "lag"),
        column("lagChart", "Lag, since open", "chart"), column("recordsPerSecond", "Records", "rate"), column("rateChart", "Records, since open", "chart"),
        column("held", "Held"), column("pendingBytes", "Pending", "bytes"), column("reads", "Reads"), column("owner", "Owner"),
        column("trouble", "Trouble", "long"), column("renewalAgeSeconds", "Renewed ago", "seconds"), column("checkpoint", "Checkpoint", "code"),
        column("release", "Action", "action")],
    },
    {
      id: "queues", title: "Queues", rows: queuesOf(status, queues), isHidden: !(status.queues ?? []).length && !(queues ?? []).length,
      columns: [column("name", "Queue"), column("state", "State", "badge"), column("kind", "Kind"), column("visible", "Waiting", "number"),
        column("inFlight", "In flight", "number"), column("delayed", "Delayed", "number"), column("inHand", "In flight here", "number"),
        column("oldestInHandSeconds", "Oldest here", "seconds"), column("outcomes", "Outcomes"), column("redriveTo", "Redrive to"),
        column("error", "Error", "long")],
    },
    {
      id: "errors", title: "Recent errors and warnings", rows: status.recentErrors ?? [], note: isNothing(status.recentErrors) ? "None." : "",
      columns: [column("at", "At", "time"), column("level", "Level", "badge"), column("event", "Event"), column("about", "About"),
        column("error", "Error", "long"), column("count", "Times", "number")],
    },
    { id: "totals", title: "Since the start of this replica", facts: totalsOf(status) },
  ];
}

function totalsOf({ counters = {}, cache, prefetch, citrus, sources = [] }) {
  const facts = {
    operations: text(counters.operations), deadLetters: text(counters.deadLetters), provisionedTenants: text(counters.provisioned),
    sources: sources.map(({ name, state }) => `${name} ${state}`).join(", "),
    readAheadAndNotApplied: prefetch && `${text(prefetch.usedBytes, "bytes")} of ${text(prefetch.maxBytes, "bytes")}`,
    citrus, cache: cache && text(cache),
  };
  return Object.fromEntries(Object.entries(facts).filter(([, value]) => !isNothing(value)));
}

// The few numbers by which a person sees whether all is well.
export function overviewOf(status, { fleet, queues, traces }) {
  const streamShards = streamShardsOf(status, fleet, traces);
  const replicas = fleet?.replicas ?? [];
  const shards = status.shards ?? [];
  const sick = shards.filter(({ state }) => state !== "healthy");
  const lost = sick.filter(({ state }) => state === "lost");
  const lag = maximum(streamShards.map((one) => one.lagSeconds));
  const held = new Set((status.held ?? []).map((one) => one.target)).size;
  const unowned = streamShards.filter(({ state }) => state === "unowned").length;
  const known = queuesOf(status, queues);
  const dead = known.filter((one) => one.isDead);
  const buried = status.history ? sum(status.history.deadLetters) : null;
  const rates = streamShards.map((one) => one.recordsPerSecond).filter((one) => typeof one === "number");
  return [
    { id: "replicas", value: count(replicas.length), label: replicas.length === 1 ? "replica" : "replicas", isHidden: !replicas.length },
    { id: "stream", value: count(streamShards.length), label: unowned ? `stream shards, ${unowned} without owner` : "stream shards", tone: unowned ? "bad" : "", isHidden: !streamShards.length },
    { id: "stream", value: text(lag, "seconds"), label: "highest lag", tone: lag >= 60 ? "bad" : lag >= 10 ? "warn" : "", isHidden: lag === null },
    { id: "stream", value: `${count(sum(rates))}/s`, label: "records of the fleet", isHidden: !rates.length },
    { id: held ? "held" : "stream", value: count(held), label: held === 1 ? "held target" : "held targets", tone: held ? "warn" : "" },
    { id: "shards", value: `${shards.length - sick.length} of ${shards.length}`, label: "shards healthy", tone: lost.length ? "bad" : sick.length ? "warn" : "", isHidden: !shards.length },
    { id: "queues", value: count(sum(known.filter((one) => !one.isDead).map((one) => one.visible))), label: "messages wait", isHidden: !known.length },
    { id: "queues", value: count(sum(dead.map((one) => one.visible))), label: "in the dead-letter queue", tone: sum(dead.map((one) => one.visible)) ? "warn" : "", isHidden: !dead.length },
    { id: "errors", value: count(buried ?? 0), label: "dead letters in an hour", tone: buried ? "warn" : "", isHidden: buried === null },
  ].filter((tile) => !tile.isHidden);
}
