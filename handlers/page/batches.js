// The newest batches, a line each: "83 done, 3 partial, 1 failed: why". A number shows its runs.

import { call } from "./api.js";
import { apart, briefly, byId, element, inWords } from "./dom.js";
import { narrowTo } from "./filters.js";
import { retryAll, stopAll } from "./many.js";
import { told } from "./say.js";
import { hear } from "./stream.js";

/** Between two looks, while a batch goes on and else; milliseconds. */
const PAUSE_MS = 5000, IDLE_MS = 20_000;
/** So many lines at most; the batches to choose from are more. */
const LINES = 5, MOST = 20;
/** States of a batch's films that runs have, in the order in which they are told, with their words. */
const STATES = [["succeeded", "done"], ["partial", "partial"], ["failed", "failed"], ["cancelled", "cancelled"], ["running", "running"], ["queued", "wait"]];
/** Those that no run has. */
const WITHOUT = [["refused", "refused"], ["gone", "removed"], ["waiting", "wait for the film"]];

/**
 * A batch, as GET /batches has it.
 * @typedef {object} Batch
 * @property {string} batch_id
 * @property {"analyse" | "cancel" | "retry"} kind
 * @property {"starting" | "running" | "over"} status
 * @property {string | null} prefix
 * @property {string | null} analysis
 * @property {{model?: string | null}} args
 * @property {number} films
 * @property {Record<string, number>} counts
 * @property {{message: string, count: number}[]} why
 */

const KINDS = { analyse: "", cancel: "cancel", retry: "retry" };

/** @param {Batch} batch */
function named({ kind, prefix, analysis, args, films }) {
  const what = [analysis, args.model].filter(Boolean).join(", ");
  const where = prefix === null ? `${inWords(films)} films` : apart(prefix || "the whole bucket");
  return [KINDS[kind], what, what ? `on ${where}` : where].filter(Boolean).join(" ");
}

/** @param {Batch} batch */
function line(batch) {
  const { batch_id, counts, why, status } = batch;
  const links = STATES.filter(([state]) => counts[state]).map(([state, word]) => element("a", {
    href: `?batch=${batch_id}&state=${state}`,
    onclick: (event) => { event.preventDefault(); narrowTo({ batch: batch_id, state }); },
  }, `${inWords(counts[state])} ${word}`));
  const others = WITHOUT.filter(([state]) => counts[state]).map(([state, word]) => `${inWords(counts[state])} ${word}`);
  const parts = [...links, ...others].flatMap((part, at) => (at === 0 ? [part] : [", ", part]));
  const further = status === "starting" ? [parts.length ? ", more to come" : "begins"] : [];
  const first = why[0] && `${briefly(why[0].message)}${why[0].count > 1 ? ` (${inWords(why[0].count)})` : ""}`;
  const reason = first ? [element("span", { class: "why", title: why.map(({ message }) => message).join("\n") },
    `: ${first}${why.length > 1 ? `; ${why.length - 1} more reasons` : ""}`)] : [];
  return element("li", {}, element("span", { class: "small" }, `${named(batch)}: `), ...(parts.length + further.length ? [] : ["no films"]), ...parts, ...further, ...reason, ...buttons(batch));
}

/**
 * What can be done with a batch: stop it, or make anew what failed of it.
 * @param {Batch} batch
 */
function buttons(batch) {
  const { batch_id, kind, status, counts } = batch;
  if (kind === "cancel") return [];
  const [word, act] = status !== "over" ? ["stop", stopAll] : ["retry failed", retryAll];
  if (status === "over" && !counts.failed && !counts.cancelled) return [];
  const name = named(batch);
  return [" ", element("button", {
    type: "button", class: "small", "aria-label": `${word}: ${name}`, onclick: told(() => act({ batch_id }, name)),
  }, word)];
}

let shown = "";

async function look() {
  /** @type {Batch[]} */
  const batches = (await call("GET", `/batches?limit=${MOST}`)).items;
  goesOn = batches.some(({ status }) => status !== "over");
  const text = JSON.stringify(batches);
  if (text === shown) return; // the focus stays where it is
  shown = text;
  byId("batches").replaceChildren(...batches.slice(0, LINES).map(line));
  const select = byId("batch", HTMLSelectElement);
  const chosen = select.value;
  const names = new Map(batches.map((batch) => [batch.batch_id, named(batch)]));
  if (chosen !== "" && !names.has(chosen)) names.set(chosen, chosen);
  select.replaceChildren(element("option", { value: "" }, "all"),
    ...[...names].map(([id, name]) => element("option", { value: id }, name)));
  select.value = chosen;
}

let due = 0, at = -IDLE_MS, goesOn = false;

/**
 * Show soon how the batches are.
 * @param {boolean} [isNew] whether there is another one, asked for here: then at once
 */
export function showBatches(isNew = false) {
  if (due !== 0 && !isNew) return;
  clearTimeout(due);
  const pause = isNew ? 0 : Math.max(0, at + (goesOn ? PAUSE_MS : IDLE_MS) - performance.now());
  due = setTimeout(() => {
    due = 0;
    at = performance.now();
    look().catch(() => {}); // with what is told next
  }, pause);
}

/** Begin: show them now, and again as the server tells of what they may have. */
function start() {
  for (const event of ["runs", "files", "fresh"]) hear(event, () => showBatches());
  showBatches();
}

start();
