// Elements, and tables that change only where their rows do: scrolled tables, selected text and the focus stay.
import { duration, isNothing, isNumeric, isStale, kindOf, text, toneOfLag, toneOfState, words } from "./format.js";
import { lineChart } from "./chart.js";
import { hrefOf, linkOf } from "./router.js";

const VIEWS_OF_KIND = { tenant: "tenants", shard: "shards", stream: "stream", queue: "queues" };
const LONG_TEXT = 60;
const LONG_HEADING = 26; // of a row, in the width of a phone

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

const badge = (content, tone) => element("span", content, `badge ${tone}`);

function choice({ label, choose }) {
  const made = element("label");
  const box = made.appendChild(element("input"));
  box.type = "checkbox";
  box.addEventListener("change", () => choose(box.checked));
  made.append(` ${label}`);
  return made;
}

// A page of the runbook: a link where the worker knows the address of the documentation, else its path to read.
export function runbookLink(page) {
  if (!page) return element("span");
  if (!/^https?:/.test(page)) {
    const path = element("span", "Runbook: ", "soft");
    path.append(element("code", page));
    return path;
  }
  const made = element("a", "Runbook");
  made.href = page;
  made.target = "_blank";
  made.rel = "noreferrer";
  return made;
}

// A link within the page.
function link(content, href) {
  const made = element("a", content);
  made.href = href;
  return made;
}

function cellFigure({ plot, label, most }) {
  const made = element("div", undefined, "cell-chart");
  made.append(lineChart(plot, label), element("span", most));
  return made;
}

export function actionButton(title, act) {
  const made = element("button", title);
  made.addEventListener("click", () => act(made));
  return made;
}

// The content of a cell, and its class. The kinds are those of format.js, and those that are named here.
function contentOf(value, kind, isHeading) {
  const shown = text(value, kind);
  if (!isNothing(value)) {
    if (kind === "badge") return [badge(shown, toneOfState(value))];
    if (kind === "warning") return [badge(shown, "warn")];
    if (kind === "lag" && toneOfLag(value)) return [badge(shown, toneOfLag(value)), "number"];
    if (kind === "chart") return [cellFigure(value)];
    if (VIEWS_OF_KIND[kind]) return [link(shown, hrefOf(VIEWS_OF_KIND[kind], value))];
    if (kind === "subject" && linkOf(value).href) return [link(shown, linkOf(value).href)];
    if (kind === "action") return [actionButton(value.title, value.act)];
    if (kind === "choice") return [choice(value)];
    if (kind === "code") return [openable(shown), "code"];
    if (kind === "link") return [runbookLink(value)];
  }
  const isLong = shown.length > (isHeading ? LONG_HEADING : LONG_TEXT);
  if (kind === "long" || kind === "advice" || (isHeading && isLong)) {
    return [isLong ? openable(shown) : element("span", shown), kind === "advice" ? "long advice" : "long"];
  }
  return [shown, isNumeric(kind) ? "number" : ""];
}

function fill(cell, value, kind) {
  const [content, className = ""] = contentOf(value, kind, cell.scope);
  cell.className = `${className}${isNothing(value) ? " nothing" : ""}`;
  const isName = cell.scope && typeof content === "string"; // such as shard.cut_off, which breaks at its dots
  cell.replaceChildren(...(isName ? content.split(/(?<=[._])/).flatMap((part) => [part, element("wbr")]) : [content]));
}

const signature = (value) => JSON.stringify(value) ?? "";

function updateRow(row, columns, values) {
  for (const [place, column] of columns.entries()) {
    const value = values[column.key];
    const now = signature(value);
    const cell = row.children[place];
    if (cell.signature === now) continue;
    cell.signature = now;
    fill(cell, value, column.kind);
  }
}

function heading(scope, content, className) {
  const made = element("th", content, className);
  made.scope = scope;
  return made;
}

function newRow(columns) {
  const row = element("tr");
  row.append(heading("row"), ...columns.slice(1).map(() => element("td")));
  for (const [place, { title }] of columns.entries()) row.children[place].dataset.title = title; // shown on a phone
  return row;
}

function newTable(columns) {
  const table = element("table");
  const head = table.createTHead().insertRow();
  for (const { title, kind } of columns) head.append(heading("col", title, isNumeric(kind) ? "number" : ""));
  table.createTBody();
  return table;
}

// Show *rows* in *holder*; columns without any value are left out.
function showTable(holder, columns, rows) {
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
    body.rows[place].className = values.isGrey ? "stale" : "";
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
    const cell = element("td");
    const isState = /^(state|status)$/.test(key);
    fill(cell, value, isState ? "badge" : typeof value === "string" && value.length > LONG_TEXT ? "long" : kindOf(key));
    cell.classList.remove("number");
    body.insertRow().append(heading("row", words(key)), cell);
  }
  holder.replaceChildren(body.parentNode);
}

// Have *made* scroll by keyboard, too.
function region(made, attribute, value) {
  made.tabIndex = 0;
  made.setAttribute("role", "region");
  made.setAttribute(attribute, value);
  return made;
}

export const showCode = (parent, label, content) => parent.append(region(element("pre", content), "aria-label", label));

function newSection(parent, id) {
  const made = parent.appendChild(element("section", undefined, "card"));
  const title = element("h2");
  made.id = `section-${id}`;
  title.id = `title-${id}`;
  made.append(title, element("p", "", "none"), region(element("div", undefined, "scroll"), "aria-labelledby", title.id));
  return made;
}

// Show a section of *parent*: a heading, a remark, and a table or facts in a holder that scrolls in its own width. *age*
// is that of its values, in seconds.
export function showSection(parent, { id, title, note = "", columns, rows, facts, age = null }) {
  const shown = byId(`section-${id}`) ?? newSection(parent, id);
  const [head, remark, holder] = shown.children;
  setText(head, title);
  const isOld = isStale(age);
  const remarks = [isOld ? `These values are ${duration(age)} old.` : "", note].filter(Boolean).join(" ");
  setText(remark, remarks);
  remark.hidden = !remarks;
  shown.classList.toggle("stale", isOld);
  holder.hidden = !facts && !rows.length;
  if (facts) showFacts(holder, facts);
  else if (rows.length) showTable(holder, columns, rows);
  return shown;
}
