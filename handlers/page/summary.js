// One line on how the runs of a folder go: "83 done, 3 partial, 1 failed: why".

import { call } from "./api.js";
import { briefly, byId, inWords } from "./dom.js";

/** Between two looks, milliseconds. */
const PAUSE_MS = 5000;
/** So many reasons are told, the commonest. */
const REASONS = 3;
/** States in the order in which they are told, with their words. */
const RUNS = [["succeeded", "done"], ["partial", "partial"], ["failed", "failed"], ["cancelled", "cancelled"], ["running", "running"], ["queued", "wait"]];

let due = 0, at = -PAUSE_MS, folder = "";

/** @param {{runs: Record<string, number>, files: Record<string, number>, reasons: {message: string, count: number}[], all: boolean}} found */
function line({ runs, files, reasons, all }) {
  const parts = RUNS.filter(([state]) => runs[state]).map(([state, word]) => `${inWords(runs[state])} ${word}`);
  if (files.refused) parts.push(`${inWords(files.refused)} refused`);
  const why = reasons.map(({ message, count }) => (count > 1 ? `${briefly(message)} (${inWords(count)})` : briefly(message)))
    .slice(0, REASONS).join("; ");
  return `${parts.join(", ")}${all ? "" : ", and more"}${why ? `: ${why}` : ""}`;
}

async function look() {
  at = performance.now();
  const asked = folder;
  const found = await call("GET", `/summary?prefix=${encodeURIComponent(asked)}`);
  if (asked === folder) byId("summary").textContent = line(found);
}

/**
 * Tell soon how the runs of a folder go.
 * @param {string} prefix of the videos' keys
 */
export function summarise(prefix) {
  const pause = prefix === folder ? Math.max(0, at + PAUSE_MS - performance.now()) : 0;
  folder = prefix;
  if (due !== 0 && pause > 0) return;
  clearTimeout(due);
  due = setTimeout(() => { due = 0; look().catch(() => {}); }, pause);
}
