// Lists of things to read one by one. An item keeps its place, its open details and the focus while its facts change.
import { actionButton, byId, element, runbookLink, setText } from "./dom.js";

const LINKS_SHOWN = 5;
const PARTS = ["head", "facts", "advice", "more", "commands", "buttons"];

function anchor({ text, href }) {
  if (!href) return element("span", text);
  const made = element("a", text);
  made.href = href;
  return made;
}

function head({ tone, badge, title, links = [], unlisted = 0 }) {
  const made = element("p", undefined, "head");
  made.append(element("span", badge, `badge ${tone}`), element("strong", title));
  for (const one of links.slice(0, LINKS_SHOWN)) made.append(anchor(one));
  const more = Math.max(0, links.length - LINKS_SHOWN) + unlisted;
  if (more) made.append(element("span", `and ${more} more`, "soft"));
  return made;
}

function facts({ facts: known }) {
  const made = element("dl");
  for (const [name, value] of Object.entries(known)) {
    const pair = made.appendChild(element("div"));
    pair.append(element("dt", name), element("dd", value));
  }
  return made;
}

function advice({ advice: text, runbook }) {
  if (!text) return null;
  const made = element("p", undefined, "advice");
  for (const [place, part] of text.split("`").entries()) made.append(place % 2 ? element("code", part) : part); // as in Markdown
  made.append(" ", runbookLink(runbook));
  return made;
}

function more({ more: list }) {
  if (!list) return null;
  const made = element("details");
  const lines = element("ul");
  for (const one of list.links) lines.appendChild(element("li")).append(anchor(one));
  made.append(element("summary", list.title), lines);
  return made;
}

function commands({ commands: known }) {
  if (!known) return null;
  const made = element("dl", undefined, "commands");
  for (const [name, text] of Object.entries(known)) {
    const pair = made.appendChild(element("div"));
    pair.append(element("dt", name), element("dd"));
    pair.lastElementChild.append(element("code", text));
  }
  return made;
}

function buttons({ buttons: known }) {
  if (!known?.length) return null;
  const made = element("p", undefined, "actions");
  for (const { title, act } of known) made.append(actionButton(title, act));
  return made;
}

const MAKERS = { head, facts, advice, more, commands, buttons };
const PART_OF = {
  head: ({ tone, badge, title, links, unlisted }) => [tone, badge, title, links, unlisted],
  facts: (item) => item.facts,
  advice: (item) => [item.advice, item.runbook],
  more: (item) => item.more,
  commands: (item) => item.commands,
  buttons: (item) => (item.buttons ?? []).map(({ title, subject }) => [title, subject]),
};

// A part is made anew where it has changed; an open list, or the focus, stays as it is.
function fill(shown, item) {
  shown.className = `item ${item.tone}${item.isGrey ? " stale" : ""}`;
  for (const [place, name] of PARTS.entries()) {
    const holder = shown.children[place];
    const signature = JSON.stringify(PART_OF[name](item)) ?? "";
    if (holder.signature === signature) continue;
    holder.signature = signature;
    const isOpen = holder.querySelector("details")?.open;
    const made = MAKERS[name](item);
    holder.replaceChildren(...(made ? [made] : []));
    if (isOpen && made) made.open = true;
  }
}

function newItem() {
  const made = element("li");
  made.append(...PARTS.map(() => element("div")));
  return made;
}

function newList(parent, id) {
  const made = parent.appendChild(element("section", undefined, "card"));
  const title = element("h2");
  made.id = `section-${id}`;
  title.id = `title-${id}`;
  const list = element("ul", undefined, "items");
  list.setAttribute("aria-labelledby", title.id);
  made.append(title, element("p", "", "none"), list);
  return made;
}

// Show *items* in a section of *parent*; each has an id of its own.
export function showItems(parent, { id, title, note = "", items }) {
  const shown = byId(`section-${id}`) ?? newList(parent, id);
  const [heading, remark, list] = shown.children;
  setText(heading, title);
  setText(remark, note);
  remark.hidden = !note;
  const isInUse = list.contains(document.activeElement); // what is moved would lose the focus
  const known = new Map([...list.children].map((one) => [one.key, one]));
  for (const [place, item] of items.entries()) {
    const one = known.get(item.id) ?? newItem();
    known.delete(item.id);
    one.key = item.id;
    fill(one, item);
    if (!one.isConnected || (!isInUse && list.children[place] !== one)) list.insertBefore(one, list.children[place] ?? null);
  }
  for (const one of known.values()) one.remove();
  return shown;
}
