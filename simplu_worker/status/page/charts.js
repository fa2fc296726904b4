// The charts of the last hour, one figure each.
import { bars, capacityOf, highest, lines } from "./chart.js";
import { byId, element, setText } from "./dom.js";
import { sum, text } from "./format.js";

const CHARTS = [
  { key: "operationsPerSecond", title: "Operations", kind: "rate" },
  { key: "lagSeconds", title: "Lag", kind: "seconds" },
  { key: "latencyP50Seconds", second: "latencyP99Seconds", title: "Latency p50 · p99", kind: "seconds" },
  { key: "failedPerSecond", title: "Failed operations", kind: "rate" },
  { key: "deadLetters", title: "Dead letters", kind: "number", isBars: true },
  { key: "heldTargets", title: "Held targets", kind: "number", isBars: true },
];

function figure(key, title) {
  const known = byId(`chart-${key}`);
  if (known) return known;
  const made = element("figure", undefined, "card");
  made.id = `chart-${key}`;
  const caption = element("figcaption");
  caption.append(element("span", title), element("b", ""));
  const axis = element("div", undefined, "axis");
  axis.append(element("span", ""), element("span", "now"));
  made.append(caption, element("div"), axis);
  byId("charts").append(made);
  return made;
}

function describe({ key, second, title, kind }, history) {
  const points = history[key];
  const other = history[second] ?? [];
  const top = text(highest(points, other), kind);
  if (key === "deadLetters") {
    const total = text(sum(points), kind);
    return [total, `${title} of the last hour: ${total}`];
  }
  const now = (second ? [points, other] : [points]).map((one) => text(one.at(-1), kind)).join(" · ");
  return [`${now} (max ${top})`, `${title} of the last hour: now ${now}, highest ${top}`];
}

export function showCharts(history) {
  for (const chart of CHARTS) {
    const points = history[chart.key];
    const known = byId(`chart-${chart.key}`);
    if (!Array.isArray(points) || !points.length) {
      known?.remove();
      continue;
    }
    const made = figure(chart.key, chart.title);
    const shape = JSON.stringify([points, history[chart.second]]);
    if (made.shape === shape) continue;
    made.shape = shape;
    const [caption, holder, axis] = made.children;
    const [shown, label] = describe(chart, history);
    setText(caption.lastElementChild, shown);
    const seconds = capacityOf(points) * (history.intervalSeconds ?? 30);
    setText(axis.firstElementChild, seconds >= 3600 ? "an hour ago" : `${Math.round(seconds / 60)} min ago`);
    holder.replaceChildren(chart.isBars ? bars(points, label) : lines(points, label, history[chart.second]));
  }
}
