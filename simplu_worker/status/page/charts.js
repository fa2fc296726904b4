// The charts of the fleet, one figure each, over an hour or a day.
import { PERIODS, clock, highest, lineChart, scaleEnd } from "./chart.js";
import { byId, element, setText } from "./dom.js";
import { text } from "./format.js";

const CHARTS = [
  { key: "recordsPerSecond", title: "Records, all replicas", kind: "rate" },
  { key: "lagSeconds", title: "Highest lag", kind: "seconds" },
  { key: "latencyP99Seconds", title: "p99 latency", kind: "latency" },
  { key: "heldTargets", title: "Holds, one for each stream shard", kind: "number" },
  { key: "deadLetters", title: "Dead letters, last hour", kind: "number" },
  { key: "replicas", title: "Replicas", kind: "number" },
];
const TICKS = 4;

function figure(key, title) {
  const known = byId(`chart-${key}`);
  if (known) return known;
  const made = element("figure", undefined, "card");
  made.id = `chart-${key}`;
  const caption = element("figcaption");
  caption.append(element("span", title), element("b", ""));
  const scale = element("div", undefined, "scale");
  scale.append(element("span"), element("span"), element("span"));
  const axis = element("div", undefined, "axis");
  for (let tick = 0; tick <= TICKS; tick += 1) axis.append(element("span"));
  made.append(caption, scale, element("div", undefined, "plot"), axis);
  byId("charts").append(made);
  return made;
}

// Show a period of *history*, that of /fleet/history.
export function showCharts(history, period) {
  const series = history?.[period];
  const isKnown = Boolean(series?.at.length);
  setText(byId("charts-note"), isKnown ? "" : "The first point comes within half a minute.");
  if (!isKnown) return byId("charts").replaceChildren();
  const until = series.at.at(-1);
  const from = until - PERIODS[period];
  for (const { key, title, kind } of CHARTS) {
    const made = figure(key, title);
    const values = series[key];
    const signature = JSON.stringify([period, series.at, values]);
    if (made.signature === signature) continue;
    made.signature = signature;
    const [caption, scale, holder, axis] = made.children;
    const most = highest(values);
    const top = scaleEnd(most, kind);
    const now = text(values.at(-1), kind);
    const isEmpty = !values.some((one) => typeof one === "number");
    setText(caption.lastElementChild, isEmpty ? "not known" : `${now} at ${clock(until)}, max ${text(most, kind)}`);
    for (const [place, share] of [1, 0.5, 0].entries()) setText(scale.children[place], text(top * share, kind === "latency" ? "seconds" : kind));
    for (let tick = 0; tick <= TICKS; tick += 1) setText(axis.children[tick], clock(from + ((until - from) * tick) / TICKS));
    const label = isEmpty ? `${title}: not known` : `${title} from ${clock(from)} to ${clock(until)}: at the end ${now}, highest ${text(most, kind)}`;
    holder.replaceChildren(lineChart({ at: series.at, values, from, until, top, interval: series.intervalSeconds }, label));
  }
}
