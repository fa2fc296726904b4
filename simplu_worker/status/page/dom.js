// Elements, and tables that change only where their rows do: scrolled tables, selected text and the focus stay.
import { isNothing, isNumeric, text, toneOfLag, toneOfState, words, kindOf } from "./format.js";
import { sparkline } from "./chart.js";

const LONG_TEXT = 60;

export const byId = (id) => document.getElementById(id);

export function element(name, content, className) {
  const made = document.createElement(name);
  if (content !== undefined) made.textContent = content;
  if (className) made.className = className;
  return made;
}

export function setText(target, content) {
  if (target.textContent !== content) target.textContent = content;
}

// A text that a person may open to read all of it.
function openable(content) {
  const details = element("details");
  details.append(element("summary", content));
  return details;
}

// A column is {key, title, kind}. The kinds are those of format.js, and: badge, warning, lag, long, advice, code, chart, action.
function fill(cell, value, { kind }) {
  cell.className = "";
  if (kind === "badge" && !isNothing(value)) return cell.replaceChildren(element("span", text(value), `badge ${toneOfState(value)}`));
  if (kind === "warning" && !isNothing(value)) return cell.replaceChildren(element("span", text(value), "badge warn"));
  if (kind === "lag") {
    cell.className = "number";
    const tone = isNothing(value) ? "" : toneOfLag(value);
    return cell.replaceChildren(tone ? element("span", text(value, "seconds"), `badge ${tone}`) : text(value, "seconds"));
  }
  if (kind === "chart") return cell.replaceChildren(value ? sparkline(value.points, value.label) : "–");
  if (kind === "action" && value) {
    const button = element("button", value.title);
    button.type = "button";
    button.addEventListener("click", () => value.act(button));
    return cell.replaceChildren(button);
  }
  if (kind === "code" && !isNothing(value)) {
    cell.className = "code";
    return cell.replaceChildren(openable(String(value)));
  }
  const shown = text(value, kind);
  if (kind === "long" || kind === "advice" || (cell.scope && shown.length > LONG_TEXT)) {
    cell.className = kind === "advice" ? "long advice" : "long";
    return cell.replaceChildren(shown.length > LONG_TEXT ? openable(shown) : element("span", shown));
  }
  if (isNumeric(kind)) cell.className = "number";
  return cell.replaceChildren(shown);
}

const signature = (value) => JSON.stringify(value) ?? "";

function updateRow(row, columns, values) {
  for (const [place, column] of columns.entries()) {
    const value = values[column.key];
    const now = signature(value);
    const cell = row.children[place];
    if (cell.signature === now) continue;
    cell.signature = now;
    fill(cell, value, column);
  }
}

function newRow(columns) {
  const row = element("tr");
  for (const place of columns.keys()) {
    const cell = element(place ? "td" : "th");
    if (!place) cell.scope = "row";
    row.append(cell);
  }
  return row;
}

function newTable(columns) {
  const table = element("table");
  const head = table.createTHead().insertRow();
  for (const { title, kind } of columns) {
    const heading = element("th", title, isNumeric(kind) || kind === "lag" ? "number" : "");
    heading.scope = "col";
    head.append(heading);
  }
  table.createTBody();
  return table;
}

// Show *rows* in *holder*; columns without any value are left out.
export function showTable(holder, columns, rows) {
  const used = columns.filter(({ key }, place) => !place || rows.some((row) => !isNothing(row[key])));
  const shape = used.map(({ key }) => key).join();
  if (holder.shape !== shape) {
    holder.shape = shape;
    holder.replaceChildren(newTable(used));
  }
  const body = holder.firstElementChild.tBodies[0];
  while (body.rows.length > rows.length) body.lastElementChild.remove();
  for (const [place, values] of rows.entries()) {
    if (place >= body.rows.length) body.append(newRow(used));
    updateRow(body.rows[place], used, values);
  }
}

// Show the members of *facts* in *holder*, one in a row.
export function showFacts(holder, facts) {
  const shape = signature(facts);
  if (holder.shape === shape) return;
  holder.shape = shape;
  const body = element("table", undefined, "facts").createTBody();
  for (const [key, value] of Object.entries(facts)) {
    const heading = element("th", words(key));
    heading.scope = "row";
    const cell = element("td");
    const isState = /^(state|status)$/.test(key);
    fill(cell, value, { kind: isState ? "badge" : typeof value === "string" && value.length > LONG_TEXT ? "long" : kindOf(key) });
    cell.classList.remove("number");
    body.insertRow().append(heading, cell);
  }
  holder.replaceChildren(body.parentNode);
}

// Return the section *id* of *parent*: a heading, a remark, and a holder that scrolls in its own width.
export function section(parent, id, title) {
  const known = byId(`section-${id}`);
  if (known) {
    setText(known.firstElementChild, title);
    return known;
  }
  const made = element("section", undefined, "card");
  made.id = `section-${id}`;
  const heading = element("h2", title);
  heading.id = `title-${id}`;
  const note = element("p", "", "none");
  const holder = element("div", undefined, "scroll");
  holder.tabIndex = 0;
  holder.setAttribute("role", "region");
  holder.setAttribute("aria-labelledby", heading.id);
  made.append(heading, note, holder);
  parent.append(made);
  return made;
}

export function showSection(parent, { id, title, note = "", columns, rows, facts }) {
  const shown = section(parent, id, title);
  const [, remark, holder] = shown.children;
  setText(remark, note);
  remark.hidden = !note;
  holder.hidden = !facts && !rows.length;
  if (holder.hidden) return shown;
  if (facts) showFacts(holder, facts);
  else showTable(holder, columns, rows);
  return shown;
}
