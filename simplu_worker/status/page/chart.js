// Small charts, drawn as SVG.
const NAMESPACE = "http://www.w3.org/2000/svg";
const WIDTH = 240;
const HEIGHT = 48;
const CAPACITY_MIN = 24; // a young history begins in the middle of a chart, not at its end

export const capacityOf = (points) => Math.max(points.length, CAPACITY_MIN);

function shape(name, attributes) {
  const made = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function drawing(label) {
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label });
  svg.append(shape("line", { class: "base", x1: 0, x2: WIDTH, y1: HEIGHT - 0.5, y2: HEIGHT - 0.5 }));
  return svg;
}

// The runs of known values in *points*, as lists of [x, y]; a missing value is a gap.
function runs(points, top) {
  const found = [];
  let run = null;
  const capacity = capacityOf(points);
  const step = WIDTH / (capacity - 1);
  const shift = capacity - points.length;
  for (const [place, value] of points.entries()) {
    if (value === null || value === undefined) {
      run = null;
      continue;
    }
    if (!run) found.push(run = []);
    run.push([(place + shift) * step, HEIGHT - 1 - (value / top) * (HEIGHT - 4)]);
  }
  return found;
}

const path = (run) => run.map(([x, y], place) => `${place ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("")
  + (run.length === 1 ? "h1" : "");

function line(svg, points, top, className, hasArea) {
  for (const run of runs(points, top)) {
    if (hasArea) {
      const end = run[run.length - 1][0] + (run.length === 1 ? 1 : 0);
      svg.append(shape("path", { class: "area", d: `${path(run)}L${end.toFixed(1)} ${HEIGHT}L${run[0][0].toFixed(1)} ${HEIGHT}Z` }));
    }
    svg.append(shape("path", { class: className, d: path(run) }));
  }
}

export const highest = (...series) => Math.max(0, ...series.flat().filter((value) => typeof value === "number"));

// One or two series of an hour, as lines; *points* are the oldest first, and the last one is at the right edge.
export function lines(points, label, second = []) {
  const svg = drawing(label);
  const top = highest(points, second) || 1;
  line(svg, points, top, "line", true);
  line(svg, second, top, "line second", false);
  return svg;
}

export function bars(points, label) {
  const svg = drawing(label);
  const top = highest(points) || 1;
  const capacity = capacityOf(points);
  const step = WIDTH / capacity;
  const shift = capacity - points.length;
  for (const [place, value] of points.entries()) {
    if (!value) continue;
    const height = Math.max(2, (value / top) * (HEIGHT - 4));
    const x = ((place + shift) * step).toFixed(1);
    svg.append(shape("rect", { class: "bar", x, y: (HEIGHT - height).toFixed(1), width: Math.max(step - 0.5, 1.5).toFixed(1), height: height.toFixed(1) }));
  }
  return svg;
}
