// Charts, drawn as SVG by the times of their points, with a scale that a person can read.
import { text } from "./format.js";

const NAMESPACE = "http://www.w3.org/2000/svg";
const WIDTH = 240;
const HEIGHT = 60;
const SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400];
const GAP = 2.5; // intervals without a point

export const PERIODS = { hour: 3600, day: 86400 };
export const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

function shape(name, attributes) {
  const made = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

export const highest = (values) => Math.max(0, ...values.filter((value) => typeof value === "number"));

// The end of a scale that has room for *value*: 1, 2 or 5 times a power of ten, or a duration that people use.
export function scaleEnd(value, kind) {
  if (!value) return 1;
  if (/^(seconds|latency)$/.test(kind)) return SECONDS.find((step) => step >= value) ?? Math.ceil(value / 86400) * 86400;
  const power = 10 ** Math.floor(Math.log10(value));
  const end = [1, 2, 5, 10].find((step) => step * power >= value * 0.999999) * power;
  return kind === "number" ? Math.max(end, 1) : end;
}

// The runs of known points as lists of [x, y]; a missing value, or time without points, is a gap.
export function runsOf({ at, values, from, until, top, interval }) {
  const runs = [];
  let last = null;
  for (const [place, value] of values.entries()) {
    const time = at[place];
    if (typeof value !== "number" || time < from || time > until) continue;
    const x = ((time - from) / (until - from)) * WIDTH;
    const y = HEIGHT - 1 - (Math.min(value, top) / top) * (HEIGHT - 2);
    const goesOn = last && last.place === place - 1 && time - last.time <= GAP * interval;
    if (!goesOn) runs.push([]);
    runs.at(-1).push([x, y]);
    last = { place, time };
  }
  return runs;
}

const path = (run) => run.map(([x, y], place) => `${place ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("")
  + (run.length === 1 ? "h1.5" : "");

// One series as a line. *plot* has `at` and `values`, lists of the same length, the oldest first, and the bounds.
export function lineChart(plot, label) {
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label });
  for (const y of [1, HEIGHT / 2, HEIGHT - 1]) svg.append(shape("line", { class: "base", x1: 0, x2: WIDTH, y1: y, y2: y }));
  for (const run of runsOf(plot)) {
    const end = run.at(-1)[0] + (run.length === 1 ? 1.5 : 0);
    svg.append(
      shape("path", { class: "area", d: `${path(run)}L${end.toFixed(1)} ${HEIGHT}L${run[0][0].toFixed(1)} ${HEIGHT}Z` }),
      shape("path", { class: "line", d: path(run) }),
    );
  }
  return svg;
}

// A small chart of an hour for a cell, with its scale; null without a known value.
export function cellChart(what, values, { at, intervalSeconds }, kind) {
  if (!at || !values?.some((one) => typeof one === "number")) return null;
  const until = new Date(at).getTime() / 1000;
  const times = values.map((_, place) => until - (values.length - 1 - place) * intervalSeconds);
  const most = text(highest(values), kind);
  const plot = { at: times, values, from: until - PERIODS.hour, until, top: scaleEnd(highest(values), kind), interval: intervalSeconds };
  return { plot, most: `max ${most}`, label: `${what} from ${clock(plot.from)} to ${clock(until)}: highest ${most}` };
}
