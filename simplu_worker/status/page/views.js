// The status of the worker and of its fleet, as sections of tables. Pure.
import { columnsOf, count, duration, isNothing, text, toneOfLag, withoutNothing } from "./format.js";

const HELD_SHOWN = 50;

const withoutZeros = (counts) => Object.fromEntries(Object.entries(counts ?? {}).filter(([, one]) => one));
const sum = (values) => values.filter((one) => typeof one === "number").reduce((total, one) => total + one, 0);
const maximum = (values) => values.filter((one) => typeof one === "number").reduce((top, one) => Math.max(top ?? 0, one), null);
const noun = (number, one) => (number === 1 ? one : `${one}s`);
const plural = (number, one) => `${count(number)} ${noun(number, one)}`;

// The stream shards with all that the fleet and this replica know of each.
export function streamShardsOf(status, fleet, traces) {
  const own = new Map((status.streamShards ?? []).map((one) => [one.streamShard, one]));
  const rows = fleet?.streamShards ?? [...own.values()];
  return rows.map((one) => {
    const here = own.get(one.streamShard) ?? {};
    const trace = traces.get(one.streamShard);
    const chart = (what, points) => points?.some((point) => point !== null) && { points, label: `${what} of ${one.streamShard} since this page is open` };
    return {
      ...here,
      ...one,
      held: isNothing(here.held) ? one.heldTargets || null : here.held,
      lagChart: chart("Lag", trace?.lag) || null,
      rateChart: chart("Records a second", trace?.rate) || null,
    };
  });
}

// The queues as SQS reports them, with all that their receivers know.
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

const heldElsewhere = (fleet) => sum((fleet?.replicas ?? []).map((one) => (one.isThis ? 0 : one.heldTargets)));

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
  const elsewhere = heldElsewhere(fleet);
  const others = elsewhere ? ` ${count(elsewhere)} are held on other replicas.` : "";
  return [
    {
      id: "held", title: "Held targets", isHidden: !held.length && !elsewhere,
      note: `${summaryOf(held) || "None here"}. Their operations wait in the stream; all others go on.${more}${others}`,
      columns: columnsOf("target", "reason:warning", "state:badge",
        "ageSeconds:seconds", "retry:action:Action", "advice:advice:What to do", "runbook:link",
        "tenants:number", "heldForSeconds:seconds",
        "streamShard", "position:code"),
      rows: held.slice(0, HELD_SHOWN).map((one) => ({ ...one, ...status.heldAdvice?.[one.reason], retry: actions?.retry(one) })),
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
      id: "replicas", title: "Replicas", rows: (fleet?.replicas ?? []).map((one) => ({ ...one, replica: one.isThis ? `${one.replica} (this one)` : one.replica })),
      columns: columnsOf("replica", "version", "leases:number", "lagSeconds:lag",
        "recordsPerSecond:rate:Records", "readKBps:kbps:Read", "heldTargets:number:Held",
        "seenSecondsAgo:seconds:Seen ago"),
    },
    {
      id: "stream", title: "Stream shards", isHidden: !streamShards.length,
      rows: streamShards.map((one) => ({ ...one, release: actions?.release(one) })),
      columns: columnsOf("streamShard", "state:badge", "lagSeconds:lag",
        "lagChart:chart:Lag, since open", "recordsPerSecond:rate:Records", "rateChart:chart:Records, since open",
        "held", "pendingBytes:bytes", "reads", "owner",
        "trouble:long", "renewalAgeSeconds:seconds:Renewed ago", "checkpoint:code",
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
      id: "errors", title: "Recent errors and warnings", rows: status.recentErrors ?? [], note: isNothing(status.recentErrors) ? "None." : "",
      columns: columnsOf("at:time", "level:badge", "event", "about",
        "error:long", "count:number:Times"),
    },
    { id: "totals", title: "Since the start of this replica", facts: totalsOf(status) },
  ];
}

function totalsOf({ counters = {}, cache, prefetch, citrus, sources = [] }) {
  return withoutNothing({
    operations: text(counters.operations), deadLetters: text(counters.deadLetters), provisionedTenants: text(counters.provisioned),
    sources: sources.map(({ name, state }) => `${name} ${state}`).join(", "),
    readAheadAndNotApplied: prefetch && `${text(prefetch.usedBytes, "bytes")} of ${text(prefetch.maxBytes, "bytes")}`,
    citrus, cache: cache && text(cache),
  });
}

// The few numbers by which a person sees whether all is well.
export function overviewOf(status, { fleet, queues, traces }) {
  const streamShards = streamShardsOf(status, fleet, traces);
  const replicas = fleet?.replicas ?? [];
  const shards = status.shards ?? [];
  const sick = shards.filter(({ state }) => state !== "healthy");
  const lost = sick.filter(({ state }) => state === "lost");
  const lag = maximum(streamShards.map((one) => one.lagSeconds));
  const held = new Set((status.held ?? []).map((one) => one.target)).size + heldElsewhere(fleet);
  const unowned = streamShards.filter(({ state }) => state === "unowned").length;
  const known = queuesOf(status, queues);
  const dead = known.filter((one) => one.isDead);
  const buried = status.history ? sum(status.history.deadLetters) : null;
  const rates = streamShards.map((one) => one.recordsPerSecond).filter((one) => typeof one === "number");
  const messages = sum(known.filter((one) => !one.isDead).map((one) => one.visible));
  const buriedInQueues = sum(dead.map((one) => one.visible));
  const letters = status.role === "operator" ? "letters" : "queues";
  const tile = (id, value, label, tone = "") => ({ id, value, label, tone });
  return [
    replicas.length && tile("replicas", count(replicas.length), noun(replicas.length, "replica")),
    streamShards.length && tile("stream", count(streamShards.length), unowned ? `stream shards, ${unowned} without owner` : "stream shards", unowned && "bad"),
    lag !== null && tile("stream", text(lag, "seconds"), "highest lag", toneOfLag(lag)),
    rates.length && tile("stream", `${count(sum(rates))}/s`, "records of the fleet"),
    tile(held ? "held" : "stream", count(held), noun(held, "held target"), held && "warn"),
    shards.length && tile("shards", `${shards.length - sick.length} of ${shards.length}`, "shards healthy", lost.length ? "bad" : sick.length && "warn"),
    known.length && tile("queues", count(messages), "messages wait"),
    dead.length && tile(letters, count(buriedInQueues), "in the dead-letter queue", buriedInQueues && "warn"),
    buried !== null && tile(letters, count(buried), "dead letters in an hour", buried && "warn"),
  ].filter(Boolean);
}
