// Is it well, what is wrong, what to do: the verdict, the problems, and the few numbers. Pure.
import { ageOf, count, duration, isNothing, isStale, noun, plural, rough, sum, text, time, toneOfLag } from "./format.js";
import { heldOf, stands, unnamedElsewhere } from "./held.js";
import { hrefOf, linkOf } from "./router.js";
import { queuesOf, streamShardsOf } from "./views.js";

const TONES = { critical: "bad", warning: "warn" };
const VIEW_OF_CAUSE = { dead_letters: "dead-letters", move_failed: "moves", queue_failing: "queues", control_blocked: "queues", near_retention: "stream", records_lost: "stream" };
const COUNTED = /^(dead_letters|internal_error|records_lost|tenant_split|control_blocked)$/; // their count is that of one target
const NOW_S = 5; // what was seen so shortly before the answer is there now

const highest = (values) => Math.max(...values);

function known(rows, key, combine) {
  const values = rows.map((one) => one[key]).filter((one) => typeof one === "number");
  return values.length ? combine(values) : null;
}

const titleOf = ({ problem, reason }) => (reason ? `${problem}: ${text(reason).replace(/_/g, " ")}` : problem);

const told = (error) => (error === "other" ? "" : error); // of a viewer's texts

// What the worker knows of a cause; a viewer has no texts of errors.
function causeOf(cause, subjects, { unreadyDetail, citrus, counters, feed, shards = [], streamShards = [], queues = [] }) {
  if (cause === "not_ready" || cause === "credentials_failing") return unreadyDetail;
  if (cause === "dead_letters") return isNothing(counters?.deadLetters) ? "" : text(counters.deadLetters);
  if (cause === "citrus_failing") return told(citrus);
  const errors = {
    shard_lost: shards.map(({ shardId, error, odd }) => [`shard ${shardId}`, isNothing(odd) ? error : text(odd)]),
    stream_failing: streamShards.map(({ streamShard, trouble }) => [`stream shard ${streamShard}`, trouble]),
    queue_failing: queues.map(({ name, state }) => [`queue ${name}`, state]),
  };
  errors.shard_degraded = errors.shard_lost;
  errors.feed_stopped = errors.feed_behind = (feed?.destinations ?? []).map(({ name, error }) => [`destination ${name}`, error]);
  const named = (errors[cause] ?? []).filter(([subject, error]) => subjects.includes(subject) && told(error));
  return [...new Set(named.map(([, error]) => error))].join("; ");
}

// The incidents that are not over, those of one cause and reason together, the worst first.
function openKinds(fleet) {
  const kinds = new Map();
  for (const one of (fleet?.problems ?? []).filter(({ isOver }) => !isOver)) {
    const id = `${one.cause} ${one.reason ?? ""}`;
    kinds.set(id, [...kinds.get(id) ?? [], one]);
  }
  return [...kinds].map(([id, incidents]) => ({
    ...incidents[0], id, incidents,
    subjects: incidents.map(({ subject }) => subject).filter(Boolean),
    at: incidents.map(({ at }) => at).sort().at(-1),
    total: COUNTED.test(incidents[0].cause) ? sum(incidents.map((one) => one.count)) : incidents[0].count,
  }));
}

// What is wrong now: an item for each cause, in which each target has its own begin.
export function problemItems({ fleet, status, ages }) {
  const read = known((fleet?.streamShards ?? []).filter(({ state }) => state === "elsewhere"), "recordsPerSecond", sum);
  return openKinds(fleet).map((one) => {
    const links = one.incidents.filter(({ subject }) => subject).map(({ subject, since }) => {
      const link = linkOf(subject);
      return one.subjects.length > 1 ? { ...link, text: `${link.text} since ${time(since)}` } : link;
    });
    const view = VIEW_OF_CAUSE[one.cause];
    if (view && !links.length) links.push({ text: "See all", href: hrefOf(view) });
    else if (one.cause === "move_failed") links.push({ text: "its commands", href: hrefOf(view) });
    const why = causeOf(one.cause, one.subjects, status);
    const isNow = ages.fleet < NOW_S && ageOf(one.at, new Date(fleet.at).getTime()) < NOW_S;
    return {
      id: one.id, tone: TONES[one.severity] ?? "warn", badge: one.severity, title: titleOf(one), links,
      unlisted: one.total > one.incidents.length && one.subjects.length > 1 ? one.total - one.incidents.length : 0,
      facts: {
        Count: count(one.total), First: time(one.since), Last: isNow ? "now" : time(one.at),
        ...(why ? { [one.cause === "dead_letters" ? "Of this replica, since its start" : "Cause"]: why } : {}),
        ...(one.cause === "not_ready" ? { "Other replicas": read === null ? "not known" : `read ${text(read, "rate")}` } : {}),
      },
      advice: one.advice, runbook: one.runbook,
    };
  });
}

// The incidents of the last day that are over, an item for each.
export const overItems = (fleet) => (fleet?.problems ?? []).filter(({ isOver }) => isOver).map((one) => ({
  id: `${one.cause} ${one.reason ?? ""} ${one.subject ?? ""} ${one.since}`, tone: "", badge: "over", title: titleOf(one),
  links: one.subject ? [linkOf(one.subject)] : [],
  facts: { Began: time(one.since), Ended: time(one.at), Took: one.at === one.since ? "a moment" : duration((new Date(one.at) - new Date(one.since)) / 1000) },
}));

// One sentence on how it is, with its tone.
export function verdictOf({ status, fleet, ages, unreachableSince }) {
  if (isStale(ages.status) || (unreachableSince && !fleet)) {
    return {
      tone: "bad", title: "Nothing is known now",
      text: `The worker has not answered for ${duration(ages.status)}. All below is as of ${time(Date.now() - 1000 * ages.status)}, and grey.`,
    };
  }
  if (!fleet) return { tone: "warn", title: "The fleet is not known", text: "The worker does not answer /fleet; what follows is of this replica." };
  const problems = openKinds(fleet);
  const critical = problems.filter((one) => one.severity === "critical");
  if (problems.length) {
    const [worst] = problems;
    const others = problems.length > 1 ? ` Below: ${plural(problems.length - 1, critical.length ? "more problem" : "more warning")}.` : "";
    const subjects = worst.subjects.length ? ` (${worst.subjects.slice(0, 3).join(", ")}${worst.subjects.length > 3 ? " …" : ""})` : "";
    return {
      tone: critical.length ? "bad" : "warn",
      title: critical.length ? `${plural(critical.length, "thing")} ${critical.length === 1 ? "needs" : "need"} you` : "It works; look at this",
      text: `${titleOf(worst)}${subjects}: ${worst.advice.replace(/`/g, "")}${others}`,
    };
  }
  const replicas = fleet.replicas?.length ?? 0;
  const shards = status.shards?.length ?? 0;
  const moves = status.moves?.length ?? 0;
  const isIdle = known(fleet.streamShards ?? [], "recordsPerSecond", sum) === 0;
  return {
    tone: "good", title: "All is well",
    text: `${plural(replicas, "replica")}, ${plural(fleet.streamShards?.length ?? 0, "stream shard")}, ${plural(shards, "Postgres shard")}; nothing is held or lost.${isIdle ? " No records come: the producers have nothing to send, or are down." : ""}${moves ? ` ${plural(moves, "move")} in progress.` : ""}`,
  };
}

// The few numbers. One without a fresh source has no value, and says what it was and when.
export function tilesOf(all) {
  const { status, fleet, queues, ages } = all;
  const streamShards = streamShardsOf(all);
  const fresh = streamShards.filter((one) => !one.isGrey);
  const replicas = fleet?.replicas ?? [];
  const freshReplicas = replicas.filter((one) => !one.isSilent);
  const shards = status.shards ?? [];
  const sick = shards.filter(({ state }) => state !== "healthy");
  const lost = sick.filter(({ state }) => state === "lost");
  const unowned = streamShards.filter(({ state }) => state === "unowned").length;
  const moves = status.moves ?? [];
  const listed = queuesOf(all);
  const dead = listed.filter((one) => one.isDead);
  const work = listed.filter((one) => !one.isDead);
  const unanswered = work.filter(({ visible }) => typeof visible !== "number").length;
  const held = heldOf(status, fleet).length + unnamedElsewhere(fleet);
  const buried = known(freshReplicas, "deadLetters", sum);
  const lag = known(fresh, "lagSeconds", highest);
  const oldest = Math.max(0, ...heldOf(status, fleet).map((one) => one.ageSeconds));
  const unread = (status.streamShards ?? []).filter(({ trouble }) => trouble).length;
  const seen = known(streamShards, "seenSecondsAgo", highest);
  const lettersView = status.role === "operator" ? "dead-letters" : "queues";
  const tile = (view, source, value, label, tone = "") => (
    isStale(ages[source]) ? { view, value: "–", label: `${label}: was ${value}, ${duration(ages[source])} ago`, tone: "", isGrey: true }
      : { view, value, label, tone: tone || "" }
  );
  const unknown = (view, label, why) => ({ view, value: "–", label: `${label}: ${why}`, tone: "", isGrey: true });
  const measured = (view, source, value, kind, label, tone) => (
    value === null ? unknown(view, label, "not known") : tile(view, source, kind === "seconds" ? rough(value) : text(value, kind), label, tone)
  );
  const silent = replicas.length - freshReplicas.length;
  return [
    replicas.length && tile("stream", "fleet", count(freshReplicas.length), `${noun(replicas.length, "replica")}${silent ? `, ${silent} silent` : ""}`, silent && "bad"),
    streamShards.length && tile("stream", "fleet", count(streamShards.length), unowned ? `stream shards, ${unowned} without owner` : "stream shards", unowned && "bad"),
    streamShards.length && (lag === null
      ? unknown("stream", "highest lag", seen ? `last seen ${duration(seen)} ago` : "not known")
      : tile("stream", "fleet", rough(lag), `highest lag${fresh.length < streamShards.length ? `, of ${fresh.length} stream shards` : ""}${held ? ", without held operations" : ""}`, toneOfLag(lag))),
    held && oldest && tile("overview", "status", rough(oldest), "oldest held operation", oldest > status.retentionSeconds / 2 ? "bad" : "warn"),
    streamShards.length && measured("stream", "fleet", known(fresh, "recordsPerSecond", sum), "rate", "records, all replicas"),
    freshReplicas.length && known(freshReplicas, "latencyP99Seconds", highest) !== null
      && measured("stream", "fleet", known(freshReplicas, "latencyP99Seconds", highest), "latency", "p99 latency"),
    streamShards.length && !fresh.length && !held ? unknown("overview", "held targets", "nobody reads the stream")
      : tile("overview", "status", `${unread ? "≥ " : ""}${count(held)}`, `${noun(held, "held target")}${unread ? `: ${plural(unread, "stream shard")} cannot be read` : ""}`, held && "warn"),
    shards.length && tile("shards", "status", `${shards.length - sick.length} of ${shards.length}`, "shards healthy", lost.length ? "bad" : sick.length && "warn"),
    moves.length && tile("moves", "status", count(moves.length), `${noun(moves.length, "move")} ${moves.some(stands) ? "not ended" : "in progress"}`, moves.some(stands) && "bad"),
    work.length && measured("queues", "queues", known(work, "visible", sum), "number", `messages in ${unanswered && unanswered < work.length ? `${work.length - unanswered} of ${work.length} queues` : "queues"}`),
    dead.length && measured(lettersView, "queues", known(dead, "visible", sum), "number", "in the dead-letter queue", known(dead, "visible", sum) && "warn"),
    !isNothing(buried) && tile(lettersView, "fleet", count(buried), "dead letters, last hour", buried && "warn"),
  ].filter(Boolean);
}
