// The status of the worker and of its fleet, as sections of tables, by the view that shows them. Pure.
import { cellChart } from "./chart.js";
import { ageOf, columnsOf, count, duration, isNothing, isStale, plural, sum, text, withoutNothing } from "./format.js";
import { hrefOf, linkOf } from "./router.js";

const BUSINESSES_SHOWN = 50;

const withoutZeros = (counts) => Object.fromEntries(Object.entries(counts ?? {}).filter(([, one]) => one));
const othersOf = (fleet) => (fleet?.replicas ?? []).filter((one) => !one.isThis);

const STREAM_STATES = { elsewhere: "at another replica" };

// The stream shards with all that the fleet and this replica know of each.
export function streamShardsOf({ status, fleet, history }) {
  const own = new Map((status.streamShards ?? []).map((one) => [one.streamShard, one]));
  const hours = new Map((history?.streamShards ?? []).map((one) => [one.streamShard, one]));
  const rows = fleet?.streamShards ?? [...own.values()];
  return rows.map((one) => {
    const here = own.get(one.streamShard) ?? {};
    const hour = hours.get(one.streamShard) ?? {};
    return {
      ...here,
      ...one,
      state: here.trouble ? "failing" : `${STREAM_STATES[one.state] ?? one.state}${one.heldTargets ? ", holding" : ""}`,
      held: isNothing(here.held) ? one.heldTargets ? plural(one.heldTargets, "target") : null : here.held,
      lagChart: cellChart(`Lag of ${one.streamShard}`, hour.lagSeconds, history ?? {}, "seconds"),
      rateChart: cellChart(`Records of ${one.streamShard}`, hour.recordsPerSecond, history ?? {}, "rate"),
      isGrey: Boolean(one.isSilent),
    };
  });
}

// The worker names an error in place of a state, to viewers the word "other".
const isError = (state) => /: |^other$/.test(state ?? "");
const stateOf = (state) => (isError(state) ? "failing" : state);

// The queues as SQS reports them, with all that their receivers know.
export function queuesOf({ status, queues }) {
  const received = new Map((status.queues ?? []).map((one) => [one.name, one]));
  const rows = queues ?? [...received.values()];
  return rows.map((one) => {
    const here = received.get(one.name) ?? {};
    const isDead = one.consumed === false;
    const error = one.error ?? (isError(here.state) ? here.state : null);
    const isSilent = Boolean(error) || Boolean(queues && isNothing(one.visible));
    const nothing = { visible: "–", inFlight: "–", delayed: "–" }; // of a queue that does not answer
    return {
      ...one,
      ...here,
      name: one.name,
      kind: one.isFifo === undefined ? null : `${one.isFifo ? "FIFO" : "standard"}${isDead ? ", dead letters" : ""}`,
      state: isSilent ? "failing" : isDead ? "ok" : here.state ?? one.state,
      error: error === "other" ? null : error,
      visible: one.visible ?? here.visible,
      ...(isSilent ? nothing : {}),
      oldestInHandSeconds: here.inHand ?? one.inHand ? here.oldestInHandSeconds ?? one.oldestInHandSeconds : null,
      outcomes: withoutZeros(here.outcomes ?? one.outcomes),
      redriveTo: one.redrive ? `${one.redrive.queue}, after ${one.redrive.maxReceiveCount} receives` : null,
      isDead,
    };
  });
}

const shardRow = (probedWithin) => ({ tenantCount, connections, connectionsUsed, connectionsMax, error, odd, lastAnswer, ...shard }) => ({
  ...shard,
  problems: isNothing(odd) ? error : text(odd),
  tenants: tenantCount ?? lastAnswer?.tenantCount,
  ourConnections: isNothing(connections) ? null : `${connections.open} open, ${connections.idle} idle${connections.waiting ? `, ${connections.waiting} waiting` : ""}`,
  serverConnections: isNothing(connectionsUsed) ? null : `${connectionsUsed} of ${connectionsMax ?? "?"}`,
  lastAnswerAt: lastAnswer?.at,
  checkedAgoSeconds: ageOf(shard.lastCheckAt),
  isGrey: isStale(ageOf(shard.lastCheckAt), probedWithin),
});

// A healthy shard is probed every ten seconds, or 5 shards a second: without two probes in a row its row is grey.
const shardRows = ({ shards = [] }) => shards.map(shardRow(2.5 * Math.max(10, shards.length / 5)));

const THIS = "this one";

// The businesses that take most of the shards' time: a row each, and below it one for each of its locations here.
function topBusinessesOf(fleet) {
  const others = othersOf(fleet).flatMap(({ replica, topBusinesses = [] }) => topBusinesses.map((one) => ({ ...one, replica })));
  const byBusiness = new Map();
  for (const { seconds, replica = THIS, ...one } of [...fleet?.topBusinesses ?? [], ...others]) {
    const key = `${one.shardId} ${one.businessId}`;
    const known = byBusiness.get(key);
    if (known) {
      known.fleetSeconds += seconds;
      known.replicas.push(replica);
    } else {
      byBusiness.set(key, { ...one, seconds: replica === THIS ? seconds : null, fleetSeconds: seconds, replicas: [replica] });
    }
  }
  const largest = [...byBusiness.values()].sort((one, other) => other.fleetSeconds - one.fleetSeconds).slice(0, BUSINESSES_SHOWN);
  return largest.flatMap(({ locations = [], ...one }) => locations.length > 1
    ? [one, ...locations.map((own) => ({ shardId: one.shardId, ...own }))] : [{ ...one, tenant: locations[0]?.tenant }]);
}

// Catch-ups and upgrades that are under way, and fences that no move explains.
function workOf(status) {
  const work = [];
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
  const newest = Math.max(...shards.map((one) => one.schemaVersion ?? 0));
  for (const { shardId, schemaVersion, upgrading } of shards) {
    const isDue = schemaVersion < newest;
    if (!upgrading && !isDue) continue;
    const detail = isDue ? `schema ${schemaVersion}, others have ${newest}` : null;
    work.push({ kind: "upgrade", subject: `shard ${shardId}`, state: upgrading ? "under way" : "due", detail });
  }
  return work;
}

const SHARD_COLUMNS = columnsOf("shardId:shard:Shard", "state:badge", "problems:long", "place", "lastAnswerAt:time:Last answer",
  "responseMs:ms", "tenants:number", "usage:ratio:Businesses of capacity", "serverConnections", "ourConnections",
  "replicationLagSeconds:seconds", "schemaVersion:number:Schema", "role");
const STREAM_COLUMNS = columnsOf("streamShard:stream:Stream shard", "state:badge", "trouble:long", "lagSeconds:lag",
  "held", "recordsPerSecond:rate:Records", "owner", "lagChart:chart:Lag, last hour", "rateChart:chart:Records, last hour",
  "seenSecondsAgo:seconds:Seen ago", "pendingBytes:bytes");
const REPLICA_COLUMNS = columnsOf("replica", "version", "unable", "leases:number", "lagSeconds:lag",
  "recordsPerSecond:rate:Records", "readKBps:kbps:Read, mean", "latencyP99Seconds:latency:p99",
  "deadLetters:number:Dead letters/h", "heldTargets:number:Held",
  "seenSecondsAgo:seconds:Seen ago");
const QUEUE_COLUMNS = columnsOf("name:queue:Queue", "state:badge", "error:long", "kind", "visible:number:Waiting",
  "inFlight:number", "delayed:number", "inHand:number:In flight here",
  "oldestInHandSeconds:seconds:Oldest here", "outcomes", "redriveTo");
const BUSINESS_COLUMNS = (here) => columnsOf("businessId:text:Business", "tenant:tenant", "shardId:shard:Shard",
  ...(here ? ["fleetSeconds:seconds:Last minute, all replicas"] : []), `seconds:seconds:Last minute${here}`, `share:ratio:Share${here}`, "replicas");
const FEED_COLUMNS = columnsOf("name:text:Destination", "lagSeconds:lag", "stopped:long:Stopped on", "error:long", "shards:number", "waitingShards:number:Waiting shards");
const WORK_COLUMNS = columnsOf("subject:subject", "kind", "state:badge", "detail:long", "seconds:seconds:For");
const TROUBLE_COLUMNS = columnsOf("target", "about", "loop", "error:long", "count:number:Times", "since:time", "at:time:Last");
const ERROR_COLUMNS = columnsOf("event", "level:badge:Log level", "count:number:Times", "since:time:First", "at:time:Last", "about:long", "error:long");

// The sections of a view. Each has the source of its values, whose age makes it grey.
const SECTIONS = {
  overview: ({ status }) => [
    {
      id: "troubles", source: "status", title: "Errors inside the worker", rows: status.troubles ?? [], isHidden: isNothing(status.troubles),
      note: "Defects, each of which stops the work for one target. The worker tries again by itself; nothing is skipped. Report them.",
      columns: TROUBLE_COLUMNS,
    },
    {
      id: "errors", source: "status", title: "Warnings and errors of the last day", rows: status.recentErrors ?? [],
      note: isNothing(status.recentErrors) ? "None." : `From the log of replica ${status.replica}, one row for each event: docs/events.md explains each.`, columns: ERROR_COLUMNS,
    },
  ],
  tenants: ({ fleet }) => [
    {
      id: "businesses", source: "fleet", title: "Businesses that take most of the shards' time", rows: topBusinessesOf(fleet), columns: BUSINESS_COLUMNS(othersOf(fleet).length ? ", here" : ""),
      note: !topBusinessesOf(fleet).length ? "No business takes 1 % of a shard's time."
        : othersOf(fleet).length ? "Of other replicas only the seconds of businesses are known; a share is that of the shard's time at this replica." : "",
    },
  ],
  shards: ({ status }) => [
    {
      id: "shards", source: "status", title: "Postgres shards", rows: shardRows(status),
      note: status.shards?.length ? "" : "No shard is known yet.", columns: SHARD_COLUMNS,
    },
  ],
  stream: (known) => [
    {
      id: "stream", source: "fleet", title: "Stream shards", note: streamShardsOf(known).length ? "" : "This worker reads no stream.",
      rows: streamShardsOf(known), columns: STREAM_COLUMNS,
    },
    {
      id: "replicas", source: "fleet", title: "Replicas", columns: REPLICA_COLUMNS,
      rows: (known.fleet?.replicas ?? []).map((one) => ({
        ...one, isGrey: one.isSilent, replica: one.isThis ? `${one.replica} (this one)` : one.replica,
      })),
    },
    { id: "totals", source: "status", title: "Since the start of this replica", facts: totalsOf(known.status) },
  ],
  queues: (known) => [
    {
      id: "queues", source: "queues", title: "Queues", rows: queuesOf(known), columns: QUEUE_COLUMNS,
      note: queuesOf(known).length ? "" : "This worker has no queue.",
    },
    {
      id: "feed", source: "status", title: "Feed", columns: FEED_COLUMNS, isHidden: !known.status.feed,
      rows: (known.status.feed?.destinations ?? []).map((one) => ({ ...one, stopped: one.stoppedShards?.join(", ") })),
    },
  ],
  "dead-letters": ({ status }) => [
    {
      id: "no-letters", source: "status", title: "Dead letters", rows: [], isHidden: status.role === "operator",
      note: "Dead letters are contents of tenants: the token of an operator shows them. Their numbers are in Queues.",
    },
  ],
  moves: ({ status }) => [
    {
      id: "work", source: "status", title: "Catch-ups and upgrades in progress", rows: workOf(status), columns: WORK_COLUMNS,
      note: workOf(status).length ? "" : "None.",
    },
  ],
};

function totalsOf({ counters = {}, cache, prefetch, citrus, sources = [] }) {
  return withoutNothing({
    operations: text(counters.operations), deadLetters: text(counters.deadLetters), provisionedTenants: text(counters.provisioned),
    sources: sources.map(({ name, state }) => `${name} ${stateOf(state)}`).join(", "),
    readAheadAndNotApplied: prefetch && `${text(prefetch.usedBytes, "bytes")} of ${text(prefetch.maxBytes, "bytes")}`,
    citrus, cache: cache && text(cache),
  });
}

const withAges = (sections, ages) => sections.map((one) => ({ ...one, age: ages[one.source] }));

export const sectionsOf = (view, known) => withAges(SECTIONS[view](known), known.ages);

const hidden = new Set(["isGrey", "isSilent", "lagChart", "rateChart", "isDead", "healthy", "shardId", "lastCheckAt"]);
const factsOf = ({ usage, ...row }) => withoutNothing({
  ...Object.fromEntries(Object.entries(row).filter(([name]) => !hidden.has(name))), businessesOfCapacity: isNothing(usage) ? null : text(usage, "ratio"),
});
const THINGS = {
  shards: ["shard", "status", ({ status }) => shardRows(status), "shardId"],
  stream: ["stream shard", "fleet", streamShardsOf, "streamShard"],
  queues: ["queue", "queues", queuesOf, "name"],
};

// One thing of a view with all that is known of it; null for a view without things of its own.
export function thingOf(view, thing, known) {
  if (!thing || !THINGS[view]) return null;
  const [kind, source, rowsOf, key] = THINGS[view];
  const found = rowsOf(known).find((one) => one[key] === thing);
  const title = `${kind[0].toUpperCase()}${kind.slice(1)} ${thing}`;
  if (!found) return { id: "thing", title, rows: [], note: "Nothing of this name is known.", age: known.ages[source] };
  return { id: "thing", title, facts: factsOf(found), age: found.isGrey ? found.seenSecondsAgo ?? found.checkedAgoSeconds ?? known.ages[source] : known.ages[source] };
}

// Whether a held target, such as "shard shard-1", is a thing of a view.
export const isAbout = (target, view, thing) => linkOf(target).href === hrefOf(view, thing);
