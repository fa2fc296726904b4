// The address of what is shown: #/shards, or #/shards/shard-1 for one thing. Pure, but for the address itself.
export const VIEWS = {
  overview: "Overview", tenants: "Tenants", shards: "Shards", stream: "Stream", queues: "Queues",
  "dead-letters": "Dead letters", moves: "Moves",
};
const VIEW_OF_KIND = { tenant: "tenants", shard: "shards", "stream shard": "stream", queue: "queues", replica: "stream" };

// The view and the thing of an address; the overview of one that is unknown.
export function parseHash(hash) {
  const [view, ...rest] = hash.replace(/^#\/?/, "").split("/");
  if (!Object.hasOwn(VIEWS, view)) return { view: "overview", thing: "" };
  try {
    return { view, thing: decodeURIComponent(rest.join("/")) };
  } catch {
    return { view, thing: "" };
  }
}

export const hrefOf = (view, thing = "") => `#/${view}${thing ? `/${encodeURIComponent(thing)}` : ""}`;

// The link of a subject as the worker names it, such as "shard shard-1"; without an address for what has no view.
export function linkOf(subject) {
  const kind = Object.keys(VIEW_OF_KIND).find((one) => subject.startsWith(`${one} `));
  if (!kind) return { text: subject };
  const thing = subject.slice(kind.length + 1);
  return { text: subject, href: hrefOf(VIEW_OF_KIND[kind], kind === "replica" ? "" : thing) };
}

export const currentRoute = () => parseHash(location.hash);
