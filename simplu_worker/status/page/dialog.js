// A question with its facts, before an action; nothing is done unless the person says so.
import { byId, setText, showFacts } from "./dom.js";

let answer = () => {}; // to the question that is open

function end(isWanted) {
  byId("dialog").close();
  answer(isWanted);
}

// Ask a person; return whether to act. *facts* are the members by which to decide, *note* what will happen.
export function askInDialog({ title, facts, note, button }) {
  setText(byId("dialog-title"), title);
  setText(byId("dialog-note"), note);
  setText(byId("dialog-act"), button);
  showFacts(byId("dialog-facts"), facts);
  byId("dialog").showModal();
  byId("dialog-leave").focus();
  return new Promise((resolve) => { answer = resolve; });
}

export function openDialog() {
  byId("dialog-act").addEventListener("click", () => end(true));
  byId("dialog-leave").addEventListener("click", () => end(false));
  byId("dialog").addEventListener("cancel", () => answer(false)); // Escape, which closes it
}

export const closeDialog = () => byId("dialog").open && end(false);
