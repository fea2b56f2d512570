// What the server tells a page while it is open. Parts of the page say what they want to hear.

import { isRefused, whenRefused } from "./api.js";
import { openStream } from "./stream_source.js";

/** Tabs that were refused read the lists within so long, each at its own time; milliseconds. */
const AFTER_MS = 3000;

/** @type {Map<string, ((data: any) => void)[]>} */
const hearers = new Map();

/**
 * Hear of an event: `fresh`, `runs`, `files`, `progress`, `queue`, `open`, `lost`, and of this page `refresh`.
 * @param {string} event
 * @param {(data: any) => void} act
 */
export function hear(event, act) {
  hearers.set(event, [...(hearers.get(event) ?? []), act]);
}

/** @param {string} event @param {any} data */
function tell(event, data) {
  for (const act of hearers.get(event) ?? []) {
    try {
      act(data);
    } catch (error) {
      reportError(error); // where one part of the page fails, the others go on
    }
  }
}

/** Have the lists read anew, as something was asked for here. */
export const refresh = () => tell("refresh", null);

// Refused: too many pages are open, and this one reads the lists by itself; or its token is not the
// server's any more, which the answer to that tells.
hear("lost", (/** @type {boolean} */ refused) => {
  if (refused) setTimeout(() => { if (!isRefused()) tell("fresh", {}); }, AFTER_MS * Math.random());
});

/** Begin to listen. */
export function listen() {
  const worker = shared();
  if (worker === null) {
    listenAlone();
    return;
  }
  const { port } = worker;
  port.onmessage = (message) => tell(message.data.event, message.data.data);
  whenRefused(() => port.postMessage("stop"));
  addEventListener("pagehide", () => port.postMessage("bye"));
  addEventListener("pageshow", (event) => {
    if (!event.persisted) return; // else it was frozen meanwhile
    port.postMessage("again");
    tell("fresh", {});
  });
}

/** The worker that all tabs share; null where a browser has none, or lends none. */
function shared() {
  try {
    return new SharedWorker("/page/stream_worker.js", { type: "module" });
  } catch {
    return null;
  }
}

/** Listen by a connection of this tab's own, as long as somebody looks at it. */
function listenAlone() {
  /** @type {(() => void) | null} */
  let close = null;
  const begin = () => {
    if (document.hidden || isRefused()) { close?.(); close = null; } else close ??= openStream(tell);
  };
  whenRefused(begin);
  document.addEventListener("visibilitychange", begin);
  begin();
}
