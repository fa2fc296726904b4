// The status of the worker and of its fleet, as sections of tables. Pure.
import { columnsOf, count, duration, isNothing, sum, text, toneOfLag, withoutNothing } from "./format.js";

const HELD_SHOWN = 50;
const TENANTS_SHOWN = 50;

const withoutZeros = (counts) => Object.fromEntries(Object.entries(counts ?? {}).filter(([, one]) => one));
// The known values of a member in *rows*; null for none.
function known(rows, key, combine) {
  const values = rows.map((one) => one[key]).filter((one) => typeof one === "number");
  return values.length ? combine(values) : null;
}
const highest = (values) => Math.max(...values);
const noun = (number, one) => (number === 1 ? one : `${one}s`);
const plural = (number, one) => `${count(number)} ${noun(number, one)}`;

const wrongKeyOf = (key) => key?.partitionKey && `${key.partitionKey} of ${key.businessId}-${key.locationId}: ${text(key.problem)}`;

// The stream shards with all that the fleet and this replica know of each.
function streamShardsOf(status, { fleet, hours }) {
  const own = new Map((status.streamShards ?? []).map((one) => [one.streamShard, one]));
  const rows = fleet?.streamShards ?? [...own.values()];
  return rows.map((one) => {
    const here = own.get(one.streamShard) ?? {};
    const { lagSeconds, recordsPerSecond } = hours[one.streamShard] ?? {};
    const chart = (what, points) => (points?.some((point) => point !== null) ? { points, label: `${what} of ${one.streamShard} in the last hour` } : null);
    return {
      ...here,
      ...one,
      held: isNothing(here.held) ? one.heldTargets || null : here.held,
      lagChart: chart("Lag", lagSeconds),
      rateChart: chart("Records a second", recordsPerSecond),
      wrongKeys: here.wrongKeys || null,
      lastWrongKey: wrongKeyOf(here.lastWrongKey),
    };
  });
}

// The queues as SQS reports them, with all that their receivers know.
function queuesOf(status, queues) {
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

const othersOf = (fleet) => (fleet?.replicas ?? []).filter((one) => !one.isThis);

// The held targets of this replica, and those that the others name.
function heldOf(status, fleet) {
  const others = othersOf(fleet).flatMap(({ replica, held = [] }) => held.map((one) => ({ ...one, replica })));
  return [...status.held ?? [], ...others].sort((one, other) => other.ageSeconds - one.ageSeconds);
}

// The tenants that take most of the shards' time: those of this replica, and those that the others name.
function topTenantsOf(fleet) {
  const others = othersOf(fleet).flatMap(({ replica, topTenants = [] }) => topTenants.map((one) => ({ ...one, replica })));
  const own = (fleet?.topTenants ?? []).map((one) => ({ ...one, replica: "this one" }));
  return [...own, ...others].slice(0, TENANTS_SHOWN).map(({ lastMinute, lastHour, ...one }) => ({
    ...one,
    ...lastMinute,
    hourSeconds: lastHour?.seconds, hourShare: lastHour?.share, hourOperations: lastHour?.operations,
    hourBytes: lastHour?.bytes, hourWaitedSeconds: lastHour?.waitedSeconds,
  }));
}

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
  const shards = status.shards ?? [];
  const newest = known(shards, "schemaVersion", highest);
  for (const { shardId, schemaVersion, upgrading } of shards) {
    const isDue = schemaVersion < newest;
    if (!upgrading && !isDue) continue;
    const detail = isDue ? `schema ${schemaVersion}, others have ${newest}` : null;
    work.push({ kind: "upgrade", subject: `shard ${shardId}`, state: upgrading ? "under way" : "due", detail });
  }
  return work;
}

export function sectionsOf(status, all) {
  const { fleet, queues, actions } = all;
  const held = heldOf(status, fleet);
  const advice = { ...fleet?.heldAdvice, ...status.heldAdvice };
  const streamShards = streamShardsOf(status, all);
  const more = held.length > HELD_SHOWN ? ` The oldest ${HELD_SHOWN} are shown.` : "";
  const elsewhere = known(othersOf(fleet), "heldTargets", sum);
  const others = elsewhere ? ` ${count(elsewhere)} are held on other replicas; the oldest of each are shown.` : "";
  return [
    {
      id: "held", title: "Held targets", isHidden: !held.length && !elsewhere,
      note: `${summaryOf(held) || "None here"}. Their operations wait in the stream; all others go on.${more}${others}`,
      columns: columnsOf("target", "reason:warning", "state:badge",
        "ageSeconds:seconds", "retry:action:Action", "advice:advice:What to do", "runbook:link",
        "tenants:number", "heldForSeconds:seconds",
        "replica", "streamShard", "position:code"),
      rows: held.slice(0, HELD_SHOWN).map((one) => ({ ...one, ...advice[one.reason], retry: actions?.retry(one) })),
    },
    {
      id: "work", title: "Moves, catch-ups and upgrades in progress", rows: workOf(status),
      columns: columnsOf("kind", "subject:long", "state:badge",
        "detail:advice", "startedAt:time:Since", "notedAt:time:Went on at", "seconds:seconds:For"),
    },
    {
      id: "shards", title: "Shards", rows: (status.shards ?? []).map(shardRow), note: status.shards?.length ? "" : "No shard is known yet.",
      columns: columnsOf("shardId:text:Shard", "state:badge", "problems:long",
        "role", "responseMs:ms", "tenants:number", "usage:ratio",
        "server:text:Connections of the server", "own:text:Ours",
        "replicationLagSeconds:seconds", "schemaVersion:number:Schema",
        "lastCheckAt:time:Checked", "lastAnswerAt:time:Last answer", "place"),
    },
    {
      id: "tenants", title: "Tenants that take most of the shards' time", rows: topTenantsOf(fleet),
      columns: columnsOf("tenant", "shardId:text:Shard", "seconds:seconds:Last minute", "share:ratio:Share",
        "operations:number", "bytes:bytes", "waitedSeconds:seconds:Waited",
        "hourSeconds:seconds:Last hour", "hourShare:ratio:Share",
        "hourOperations:number:Operations", "hourBytes:bytes:Bytes", "hourWaitedSeconds:seconds:Waited", "replica"),
    },
    {
      id: "replicas", title: "Replicas", rows: (fleet?.replicas ?? []).map((one) => ({ ...one, replica: one.isThis ? `${one.replica} (this one)` : one.replica })),
      columns: columnsOf("replica", "version", "leases:number", "lagSeconds:lag",
        "recordsPerSecond:rate:Records", "readKBps:kbps:Read", "latencyP99Seconds:seconds:p99",
        "deadLetters:number:Dead letters/h", "heldTargets:number:Held",
        "seenSecondsAgo:seconds:Seen ago"),
    },
    {
      id: "stream", title: "Stream shards", isHidden: !streamShards.length,
      rows: streamShards.map((one) => ({ ...one, release: actions?.release(one) })),
      columns: columnsOf("streamShard", "state:badge", "lagSeconds:lag",
        "lagChart:chart:Lag, last hour", "recordsPerSecond:rate:Records", "rateChart:chart:Records, last hour",
        "held", "pendingBytes:bytes", "reads", "owner",
        "wrongKeys:number:Wrong keys", "lastWrongKey:long:Last wrong key", "trouble:long", "renewalAgeSeconds:seconds:Renewed ago", "checkpoint:code",
        "release:action:Action"),
    },
    {
      id: "queues", title: "Queues", rows: queuesOf(status, queues), isHidden: !(status.queues ?? []).length && !(queues ?? []).length,
      columns: columnsOf("name:text:Queue", "state:badge", "kind", "visible:number:Waiting",
        "inFlight:number", "delayed:number", "inHand:number:In flight here",
        "oldestInHandSeconds:seconds:Oldest here", "outcomes", "redriveTo",
        "error:long"),
    },
    {
      id: "troubles", title: "Errors inside the worker", rows: status.troubles ?? [], isHidden: isNothing(status.troubles),
      note: "Defects, each of which stops the work for one target. The worker tries again by itself; nothing is skipped. Report them.",
      columns: columnsOf("target", "about", "loop", "error:long", "count:number:Times", "since:time", "at:time:Last"),
    },
    {
      id: "errors", title: "Recent errors and warnings", rows: status.recentErrors ?? [], note: isNothing(status.recentErrors) ? "None." : "",
      columns: columnsOf("at:time", "level:badge", "event", "about",
        "error:long", "count:number:Times"),
    },
    { id: "totals", title: "Since the start of this replica", facts: totalsOf(status) },
  ];
}

function totalsOf({ counters = {}, cache, prefetch, citrus, clock, sources = [] }) {
  return withoutNothing({
    operations: text(counters.operations), deadLetters: text(counters.deadLetters), provisionedTenants: text(counters.provisioned),
    sources: sources.map(({ name, state }) => `${name} ${state}`).join(", "),
    readAheadAndNotApplied: prefetch && `${text(prefetch.usedBytes, "bytes")} of ${text(prefetch.maxBytes, "bytes")}`,
    citrus, clock, cache: cache && text(cache),
  });
}

// The few numbers by which a person sees whether all is well.
export function overviewOf(status, all) {
  const streamShards = streamShardsOf(status, all);
  const replicas = all.fleet?.replicas ?? [];
  const shards = status.shards ?? [];
  const sick = shards.filter(({ state }) => state !== "healthy");
  const lost = sick.filter(({ state }) => state === "lost");
  const lag = known(streamShards, "lagSeconds", highest);
  const held = new Set((status.held ?? []).map((one) => one.target)).size + known(othersOf(all.fleet), "heldTargets", sum);
  const unowned = streamShards.filter(({ state }) => state === "unowned").length;
  const queues = queuesOf(status, all.queues);
  const dead = queues.filter((one) => one.isDead);
  const buried = known(replicas, "deadLetters", sum);
  const latency = known(replicas, "latencyP99Seconds", highest);
  const rate = known(streamShards, "recordsPerSecond", sum);
  const messages = known(queues.filter((one) => !one.isDead), "visible", sum) ?? 0;
  const buriedInQueues = known(dead, "visible", sum) ?? 0;
  const letters = status.role === "operator" ? "letters" : "queues";
  const tile = (id, value, label, tone = "") => ({ id, value, label, tone });
  return [
    replicas.length && tile("replicas", count(replicas.length), noun(replicas.length, "replica")),
    streamShards.length && tile("stream", count(streamShards.length), unowned ? `stream shards, ${unowned} without owner` : "stream shards", unowned && "bad"),
    lag !== null && tile("stream", text(lag, "seconds"), "highest lag", toneOfLag(lag)),
    rate !== null && tile("stream", `${count(rate)}/s`, "records of the fleet"),
    latency !== null && tile("replicas", text(latency, "seconds"), "p99 latency"),
    tile(held ? "held" : "stream", count(held), noun(held, "held target"), held && "warn"),
    shards.length && tile("shards", `${shards.length - sick.length} of ${shards.length}`, "shards healthy", lost.length ? "bad" : sick.length && "warn"),
    queues.length && tile("queues", count(messages), "messages wait"),
    dead.length && tile(letters, count(buriedInQueues), "in the dead-letter queue", buriedInQueues && "warn"),
    buried !== null && tile(letters, count(buried), "dead letters in an hour", buried && "warn"),
  ].filter(Boolean);
}
