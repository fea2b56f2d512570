// A shared worker with one stream for all tabs: a browser has few connections to a server.

import { openStream } from "./stream_source.js";

/** What a tab that comes later is told at once, as it was told last. */
const KEPT = new Set(["open", "lost", "progress", "queue"]);
/** @type {Set<MessagePort>} */
const tabs = new Set();
/** @type {Map<string, any>} */
const last = new Map();
/** @type {(() => void) | null} */
let close = null;

/** @type {import("./stream_source.js").Tell} */
function tell(event, data) {
  if (event === "open") last.delete("lost");
  if (event === "lost") last.delete("open");
  if (KEPT.has(event)) last.set(event, data);
  for (const tab of tabs) tab.postMessage({ event, data });
}

function end() {
  close?.();
  close = null;
  last.clear();
}

addEventListener("connect", (event) => {
  const tab = /** @type {MessageEvent} */ (event).ports[0];
  tabs.add(tab);
  tab.onmessage = (message) => {
    if (message.data === "bye") tabs.delete(tab);
    if (message.data === "stop" || tabs.size === 0) end();
    if (message.data === "again") {
      tabs.add(tab);
      close ??= openStream(tell);
    }
  };
  for (const [name, data] of last) tab.postMessage({ event: name, data });
  close ??= openStream(tell);
});
