// The attempts at a run, in a dialog: who made them, how they ended, and the end of their logs.

import { call } from "./api.js";
import { openDialog } from "./dialog.js";
import { element, when } from "./dom.js";
import { hear } from "./stream.js";

/** @typedef {{number: number, task: string, worker: string, started_at: string, outcome: string | null, progress: {stage: string}, error: {message: string} | null, log_tail: string | null}} Attempt */

/** Between two looks at the log of a run that is worked on, milliseconds. */
const LOOK_MS = 2000;
/** @type {{id: string, look: () => Promise<void>, at: number} | null} the dialog that is open */
let open = null;

/** @param {Attempt} attempt */
function described(attempt) {
  const outcome = attempt.outcome ?? `at work: ${attempt.progress.stage}`;
  const log = attempt.log_tail
    ? [element("pre", { tabindex: "0", "aria-label": `the end of the log of attempt ${attempt.number}` }, attempt.log_tail)] : [];
  return element("li", {},
    element("p", {}, `Attempt ${attempt.number}, ${attempt.task}: ${outcome.replace("_", " ")}`),
    element("p", { class: "small" }, `${when(attempt.started_at)}, ${attempt.worker}`),
    attempt.error ? element("p", { class: "why" }, attempt.error.message) : null, ...log);
}

/**
 * Show the attempts at a run, as long as the dialog is open as they are now.
 * @param {string} id of the run
 * @param {string} name of its film
 */
export async function showAttempts(id, name) {
  const list = element("ol", { class: "attempts" });
  const none = element("p", { class: "empty" }, "No worker has begun with it yet.");
  const close = element("button", { type: "button" }, "close");
  let before = "";
  const look = async () => {
    const { items } = await call("GET", `/attempts/${id}`);
    const text = JSON.stringify(items);
    if (text === before) return; // what somebody reads stays as it is
    before = text;
    none.hidden = items.length > 0;
    list.replaceChildren(...items.map(described));
    for (const log of list.querySelectorAll("pre")) log.scrollTop = log.scrollHeight;
  };
  await look();
  const dialog = openDialog(`Attempts at ${name}`, none, list, element("p", { class: "buttons" }, close));
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => { open = null; });
  close.focus();
  open = { id, look, at: performance.now() };
}

function again() {
  if (open === null || performance.now() - open.at < LOOK_MS) return;
  open.at = performance.now();
  open.look().catch(() => {}); // it is asked for again
}

/** Begin: an open dialog follows what the server tells. */
function start() {
  hear("progress", again);
  hear("runs", (/** @type {{items: {analysis_id: string}[]}} */ { items }) => {
    if (items.some((item) => item.analysis_id === open?.id)) again();
  });
}

start();
