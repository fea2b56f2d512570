// Says that posedrop does not answer, or does not let this page in any more, and since when: what is shown may be old.

import { REFUSED, isRefused, whenRefused } from "./api.js";
import { byId, clockOf } from "./dom.js";
import { hear } from "./stream.js";

/** A server that is started anew is back within so long, and nothing is said; milliseconds. */
const SAID_AFTER_MS = 4000;
let timer = 0;

/** Begin to hear of it. */
function start() {
  whenRefused(() => {
    clearTimeout(timer);
    byId("connection").textContent = `${REFUSED} What is shown is as it was at ${clockOf(new Date())}.`;
  });
  hear("lost", (/** @type {boolean} */ refused) => {
    if (refused || isRefused() || timer !== 0) return;
    const since = clockOf(new Date());
    timer = setTimeout(() => {
      byId("connection").textContent = `posedrop has not answered since ${since}: what is shown is as it was then. It is asked again by itself.`;
    }, SAID_AFTER_MS);
  });
  hear("open", () => {
    clearTimeout(timer);
    timer = 0;
    byId("connection").textContent = "";
  });
}

start();
