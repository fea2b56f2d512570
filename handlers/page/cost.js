// What an analysis would cost, before it is asked for: seconds without the network, or minutes.

import { call } from "./api.js";

const PAUSE_MS = 400;

/**
 * @param {number} seconds
 * @returns {string} "about 12 min"
 */
export function inTime(seconds) {
  if (seconds < 1) return "about a second";
  if (seconds < 100) return `about ${Math.round(seconds)} s`;
  if (seconds < 6000) return `about ${Math.round(seconds / 60)} min`;
  return `about ${(seconds / 3600).toFixed(1)} h`;
}

/** @param {{status: string, cost: {network: boolean, seconds: number | null} | null}} answer of a dry run */
function said({ status, cost }) {
  if (["succeeded", "partial"].includes(status)) return "These results are there already: nothing is run.";
  if (["waiting", "queued", "running"].includes(status)) return "It is under way already.";
  if (!cost) return "";
  const takes = cost.seconds === null ? "." : `: ${inTime(cost.seconds)}.`;
  return (cost.network ? "It takes the network" : "It needs no network, the poses are there") + takes;
}

/**
 * Return what asks anew a moment after the last change, and says nothing where the server can't tell.
 * @param {{file_id: string}} film
 * @param {() => {analysis: string, args: Record<string, any>} | null} choice
 * @param {HTMLElement} shown
 */
export function costOf(film, choice, shown) {
  let timer = 0;
  let asked = 0;
  return () => {
    clearTimeout(timer);
    const mine = ++asked;
    timer = setTimeout(async () => {
      let text = "";
      try {
        const answer = await call("POST", "/analyse", { file_id: film.file_id, ...choice(), dry_run: true });
        text = said(answer);
      } catch {
        // What is wrong with it is said when it is asked for.
      }
      if (mine === asked) shown.textContent = text;
    }, PAUSE_MS);
  };
}
