// Values as people read them. Pure.

export const STALE_S = 10; // older values are grey, with their age

const LATENCY_LONG_S = 300;
const LATENCY_MAX_S = 900;
const HOURS = { hourCycle: "h23" }; // as on the axes of the charts
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

const together = (many, unit, few, smaller) => `${many} ${unit}${few ? ` ${few} ${smaller}` : ""}`;

export function duration(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return together(minutes, "min", Math.floor(seconds % 60), "s");
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? together(hours, "h", minutes % 60, "min") : together(Math.floor(hours / 24), "d", hours % 24, "h");
}

// A long duration by one unit, for a place with little room.
export function rough(seconds) {
  if (seconds < 60) return duration(seconds);
  const [unit, name] = seconds < 5400 ? [60, "min"] : seconds < 172800 ? [3600, "h"] : [86400, "d"];
  return `${Math.round(seconds / unit)} ${name}`;
}

// A latency that the worker measures in steps: the end of its step, of which the last has none.
const latency = (seconds) => (seconds >= LATENCY_MAX_S ? `over ${duration(LATENCY_LONG_S)}` : `under ${rough(seconds)}`);

export function size(bytes) {
  let step = 0;
  for (; bytes >= 1024 && step < UNITS.length - 1; step += 1) bytes /= 1024;
  return `${step ? bytes.toFixed(1) : bytes} ${UNITS[step]}`;
}

export function count(value) {
  return value.toLocaleString("en", { maximumFractionDigits: value < 10 ? 2 : value < 100 ? 1 : 0 });
}

export const sum = (values) => values.reduce((total, one) => total + (one ?? 0), 0);

export function words(key) {
  const spaced = String(key).replace(/Seconds$|Ms$|Bytes$/, "").replace(/_/g, " ")
    .replace(/([a-z])([A-Z])/g, "$1 $2").toLowerCase().trim();
  return spaced ? spaced[0].toUpperCase() + spaced.slice(1) : String(key);
}

export const isNothing = (value) => value === null || value === undefined || value === ""
  || (typeof value === "object" && !Object.keys(value).length);

export const isStale = (seconds, most = STALE_S) => typeof seconds === "number" && seconds > most;

export const noun = (number, one) => (number === 1 ? one : `${one}s`);
export const plural = (number, one) => `${count(number)} ${noun(number, one)}`;

export const withoutNothing = (facts) => Object.fromEntries(Object.entries(facts).filter(([, value]) => !isNothing(value)));

// The columns of a table, each as "key:kind:title"; without the last two it is text, with the words of its key as title.
export const columnsOf = (...specs) => specs.map((spec) => {
  const [key, kind = "text", title = words(key)] = spec.split(":");
  return { key, kind, title };
});

export function time(value) {
  const date = new Date(value);
  if (Number.isNaN(date.getTime())) return String(value);
  const isToday = date.toDateString() === new Date().toDateString();
  return isToday ? date.toLocaleTimeString([], HOURS) : date.toLocaleString([], HOURS);
}

// The seconds since a time; null for none.
export function ageOf(value, now = Date.now()) {
  const at = new Date(value).getTime();
  return value && !Number.isNaN(at) ? Math.max(0, (now - at) / 1000) : null;
}

const KINDS = {
  number: count,
  seconds: duration,
  lag: duration,
  latency,
  ms: (value) => `${count(value)} ms`,
  bytes: size,
  kbps: (value) => `${count(value)} KB/s`,
  ratio: (value) => `${Math.round(100 * value)} %`,
  rate: (value) => `${count(value)}/s`,
};

export const isNumeric = (kind) => kind in KINDS;

// Any value of JSON as text; *kind* is of KINDS, `time`, or another one for text.
export function text(value, kind) {
  if (isNothing(value)) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "number") return (KINDS[kind] ?? count)(value);
  if (Array.isArray(value)) return value.map((item) => text(item)).join("; ");
  if (typeof value === "object") {
    return Object.entries(value).map(([name, item]) => `${words(name).toLowerCase()} ${text(item)}`).join(", ");
  }
  return kind === "time" ? time(value) : String(value);
}

// The kind of a member of JSON, by the unit in its name.
export function kindOf(key) {
  if (/Seconds$/.test(key)) return "seconds";
  if (/Ms$/.test(key)) return "ms";
  if (/Bytes$/.test(key)) return "bytes";
  if (key === "runbook") return "link";
  return /^(at|.*At|since|readUpTo|from|until)$/.test(key) ? "time" : "text";
}

const GOOD = /^(active|catching up|consuming|healthy|ok|owned|polling|reading|ready|running|succeeded|yes)$/;
const BAD = /^(closed|unowned|dead|error|failed|failing|lost|refused|rejected|stopped|unavailable|critical|no)$/;
const ORDINARY = /^(draining|at another replica|ended|released|info|unknown|destroyed)$/;
const LAG_WARN_S = 10;
const LAG_BAD_S = 60;

export function toneOfState(state) {
  if (isNothing(state) || ORDINARY.test(state)) return "";
  return GOOD.test(state) ? "good" : BAD.test(state) ? "bad" : "warn";
}

export function toneOfLag(seconds) {
  return seconds >= LAG_BAD_S ? "bad" : seconds >= LAG_WARN_S ? "warn" : "";
}
