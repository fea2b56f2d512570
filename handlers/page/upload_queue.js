// The uploads under way: one film after the other, with progress, pause, retry and a warning on leaving.

import { byId, element, ofSize } from "./dom.js";
import { remember, remembered } from "./memory.js";
import { refresh } from "./stream.js";
import { sendInParts } from "./upload_parts.js";

/** @typedef {{file: File, path: string, request: Record<string, unknown>, node: HTMLLIElement, bar: HTMLProgressElement,
 *   note: HTMLSpanElement, again: HTMLButtonElement, sent: number, state: "waits" | "goes" | "done" | "failed"}} Upload */

const REMEMBERED = "posedrop-uploads";
/** @type {Upload[]} */
const uploads = [];
let stop = new AbortController();
let paused = false;
let working = false;

const pauseButton = byId("pause", HTMLButtonElement);
pauseButton.onclick = () => {
  paused = !paused;
  if (paused) stop.abort(); // what was sent of the parts under way is sent again
  else work();
  show();
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
  const again = element("button", { type: "button", hidden: "", onclick: () => { upload.state = "waits"; work(); } }, "retry");
  const node = element("li", {}, `${path} `, bar, " ", note, " ", again);
  /** @type {Upload} */
  const upload = { file, path, request, node, bar, note, again, sent: 0, state: "waits" };
  uploads.push(upload);
  byId("uploads").append(node);
  show();
}

/** Send what waits, one film at a time: its parts are what goes side by side. */
export async function work() {
  if (working || paused) return;
  working = true;
  try {
    for (;;) {
      const upload = uploads.find((each) => each.state === "waits");
      if (!upload || paused) return;
      await send(upload);
    }
  } finally {
    working = false;
    show();
  }
}

/** @param {Upload} upload */
async function send(upload) {
  upload.state = "goes";
  stop = new AbortController();
  const watching = {
    sent: (/** @type {number} */ bytes) => { upload.sent += bytes; show(); },
    away: (/** @type {string} */ why) => tell(upload, why ? `waits: ${why}` : "", why !== ""),
    signal: stop.signal,
  };
  tell(upload, "", false);
  const name = [upload.path, upload.file.size, upload.file.lastModified].join("|");
  try {
    const remembered = upload.request.to || upload.path.includes("/") ? undefined : memory()[name];
    const request = remembered ? { ...upload.request, file_id: remembered } : upload.request;
    const ticket = await sendInParts(upload.file, request, { ...watching, begun: (ticket) => keep(name, ticket.file_id) });
    upload.state = "done";
    tell(upload, ticket.state === "exists" ? "was there" : "is there", false);
    keep(name, undefined);
    refresh();
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") {
      upload.state = "waits"; // it was paused; whoever went on meanwhile has it taken again
      return;
    }
    upload.state = "failed";
    tell(upload, /** @type {Error} */ (error).message, true);
  } finally {
    show();
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

/** Show how far each is, and all of them. */
function show() {
  let total = 0;
  let sent = 0;
  for (const upload of uploads) {
    upload.bar.value = upload.state === "done" ? upload.file.size : upload.sent;
    upload.bar.hidden = upload.state === "done";
    upload.again.hidden = upload.state !== "failed";
    total += upload.file.size;
    sent += upload.state === "done" ? upload.file.size : upload.sent;
  }
  const open = uploads.filter((each) => each.state === "waits" || each.state === "goes").length;
  const failed = uploads.filter((each) => each.state === "failed").length;
  byId("sending").hidden = uploads.length === 0;
  const all = byId("all-sent", HTMLProgressElement);
  all.max = total || 1;
  all.value = sent;
  byId("sent-words").textContent = `${uploads.length - open - failed} of ${uploads.length} there, `
    + `${ofSize(sent)} of ${ofSize(total)}${failed ? `, ${failed} failed` : ""}${paused ? ", paused" : ""}`;
  pauseButton.hidden = open === 0;
  pauseButton.textContent = paused ? "go on" : "pause";
}

addEventListener("beforeunload", (event) => {
  if (uploads.some((each) => each.state === "waits" || each.state === "goes")) event.preventDefault();
});
