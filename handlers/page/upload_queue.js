// The uploads under way: one film after the other, with progress, pause, retry and a warning on leaving.

import { ApiError, REFUSED_MIDWAY } from "./api.js";
import { byId, element, ofSize } from "./dom.js";
import { remember, remembered } from "./memory.js";
import { refresh } from "./stream.js";
import { RULE } from "./tree.js";
import { sendInParts } from "./upload_parts.js";

/** @typedef {"waits" | "goes" | "done" | "failed"} State */
/** @typedef {{file: File, path: string, request: Record<string, unknown>, place: number, bar: HTMLProgressElement,
 *   note: HTMLSpanElement, again: HTMLButtonElement, sent: number, state: State}} Upload */

/** @type {Record<string, string>} */
const OUTCOMES = {
  same: "was there",
  exists: "one as large was there, and whether it is the same can't be told from what its store says",
};
const REMEMBERED = "posedrop-uploads";
/** @type {Upload[]} */
const uploads = [];
/** Before this place of `uploads` none waits. */
let first = 0;
// Of all uploads; counted as they change, as thousands are too many to go through with each part that went.
/** @type {Record<State, number>} */
const counts = { waits: 0, goes: 0, done: 0, failed: 0 };
let allBytes = 0;
let sentBytes = 0;
/** @type {Set<Upload>} to be drawn anew */
const changed = new Set();
let isDue = false;
let stop = new AbortController();
let paused = false;
let working = false;

const pauseButton = byId("pause", HTMLButtonElement);
pauseButton.onclick = () => {
  paused = !paused;
  byId("sent-why").textContent = "";
  if (paused) stop.abort(); // what was sent of the parts under way is sent again
  else work();
  showSoon();
};

const againButton = byId("retry-failed", HTMLButtonElement);
againButton.onclick = () => {
  for (const upload of uploads) if (upload.state === "failed") become(upload, "waits");
  work();
};

/**
 * Have a film sent when its turn comes.
 * @param {File} file
 * @param {string} path
 * @param {Record<string, unknown>} request as POST /uploads/parts takes it
 */
export function enqueue(file, path, request) {
  const bar = element("progress", { max: file.size, value: 0, "aria-label": path });
  const note = element("span", { class: "small" });
  const again = element("button", { type: "button", hidden: "", onclick: () => { become(upload, "waits"); work(); } }, "retry");
  /** @type {Upload} */
  const upload = { file, path, request, place: uploads.length, bar, note, again, sent: 0, state: "waits" };
  uploads.push(upload);
  counts.waits += 1;
  allBytes += file.size;
  byId("uploads").append(element("li", {}, `${path} `, bar, " ", note, " ", again));
  showSoon();
}

/** Bytes of an upload that are there. @param {Upload} upload */
const there = (upload) => (upload.state === "done" ? upload.file.size : upload.sent);

/**
 * @param {Upload} upload
 * @param {State} state
 * @param {number} [more] bytes of it that went since
 */
function become(upload, state, more = 0) {
  counts[upload.state] -= 1;
  sentBytes -= there(upload);
  upload.state = state;
  upload.sent += more;
  counts[state] += 1;
  sentBytes += there(upload);
  if (state === "waits") first = Math.min(first, upload.place);
  showSoon(upload);
}

/** The next one that waits; undefined: none does. */
function next() {
  while (first < uploads.length && uploads[first].state !== "waits") first += 1;
  return uploads[first];
}

/** Send what waits, one film at a time: its parts are what goes side by side. */
export async function work() {
  if (working || paused) return;
  working = true;
  try {
    for (;;) {
      const upload = next();
      if (!upload || paused) return;
      await send(upload);
    }
  } finally {
    working = false;
  }
}

/** @param {Upload} upload */
async function send(upload) {
  become(upload, "goes");
  stop = new AbortController();
  const watching = {
    sent: (/** @type {number} */ bytes) => { become(upload, upload.state, bytes); },
    away: (/** @type {string} */ why) => tell(upload, why ? `waits: ${why}` : "", why !== ""),
    signal: stop.signal,
  };
  tell(upload, "", false);
  const name = [upload.path, upload.file.size, upload.file.lastModified].join("|");
  try {
    const remembered = upload.request.to || upload.path.includes("/") ? undefined : memory()[name];
    const request = remembered ? { ...upload.request, file_id: remembered } : upload.request;
    const ticket = await sendInParts(upload.file, request, { ...watching, begun: (ticket) => keep(name, ticket.file_id) });
    become(upload, "done");
    tell(upload, OUTCOMES[ticket.state] ?? "is there", false);
    keep(name, undefined);
    refresh();
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") {
      become(upload, "waits"); // it was paused; whoever went on meanwhile has it taken again
      return;
    }
    if (error instanceof ApiError && error.status === 401) {
      become(upload, "waits"); // as would each of the others: nobody is let in
      paused = true;
      byId("sent-why").textContent = REFUSED_MIDWAY;
      return;
    }
    become(upload, "failed");
    tell(upload, /** @type {Error} */ (error).message, true);
    if (RULE.test(upload.path)) hold(upload);
  }
}

/**
 * Have films wait for their rule, which did not go up: the next one further up was not meant for them.
 * @param {Upload} rule
 */
function hold(rule) {
  const folder = rule.path.replace(/[^/]*$/, "");
  for (const each of uploads) {
    if (each.state !== "waits" || each.request.analysis || RULE.test(each.path)) continue;
    if (each.request.to !== rule.request.to || !each.path.startsWith(folder)) continue;
    become(each, "failed");
    tell(each, `${rule.path} did not go up: mend that first`, true);
  }
}

/** @returns {Record<string, string>} file_ids of uploads that have no folder, by the file's name, size and time */
function memory() {
  try {
    return JSON.parse(remembered(REMEMBERED) ?? "{}");
  } catch {
    return {};
  }
}

/**
 * Keep the file_id of an upload, so that it is gone on with after a reload.
 * @param {string} name
 * @param {string | undefined} fileId undefined: it is there
 */
function keep(name, fileId) {
  const known = Object.entries({ ...memory(), [name]: fileId }).filter(([, id]) => id).slice(-1000);
  remember(REMEMBERED, JSON.stringify(Object.fromEntries(known)));
}

/**
 * @param {Upload} upload
 * @param {string} text
 * @param {boolean} isWrong
 */
function tell(upload, text, isWrong) {
  upload.note.className = isWrong ? "why" : "small";
  upload.note.textContent = text;
}

/**
 * Show how far all of them are, once in a frame of the screen.
 * @param {Upload} [upload] this one too
 */
function showSoon(upload) {
  if (upload) changed.add(upload);
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(show);
}

// An attribute that is set is a change to those who listen (focus.js), even where it says the same.
/** @param {HTMLElement} node @param {boolean} isHidden */
function hide(node, isHidden) {
  if (node.hidden !== isHidden) node.hidden = isHidden;
}

function show() {
  isDue = false;
  for (const upload of changed) {
    upload.bar.value = there(upload);
    hide(upload.bar, upload.state === "done");
    hide(upload.again, upload.state !== "failed");
  }
  changed.clear();
  const { failed } = counts;
  hide(byId("sending"), uploads.length === 0);
  const all = byId("all-sent", HTMLProgressElement);
  all.max = allBytes || 1;
  all.value = sentBytes;
  byId("sent-words").textContent = `${counts.done} of ${uploads.length} there, `
    + `${ofSize(sentBytes)} of ${ofSize(allBytes)}${failed ? `, ${failed} failed` : ""}${paused ? ", paused" : ""}`;
  hide(pauseButton, !isOpen());
  hide(againButton, failed < 2);
  pauseButton.textContent = paused ? "go on" : "pause";
}

/** Whether any is not over. */
const isOpen = () => counts.waits + counts.goes > 0;

addEventListener("beforeunload", (event) => {
  if (isOpen()) event.preventDefault();
});
