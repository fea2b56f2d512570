// Many films at once: those of a folder analysed, its runs stopped, what failed made anew; a batch's too.

import { call } from "./api.js";
import { showBatches } from "./batches.js";
import { inTime } from "./cost.js";
import { named } from "./chosen.js";
import { confirmed } from "./dialog.js";
import { apart, byId, element, inWords } from "./dom.js";
import { ofRuns } from "./filters.js";
import { part, say, told } from "./say.js";

/** Which films or runs: as POST /cancel and POST /retry take it. @typedef {{prefix: string} | {batch_id: string}} Which */

/**
 * What a batch would do, as a dry run says it.
 * @typedef {object} DryRun
 * @property {number} films
 * @property {number} run
 * @property {number} again
 * @property {number} exists
 * @property {number} not_ready
 * @property {number} refused
 * @property {number} stop
 * @property {number | null} seconds
 * @property {boolean} more
 */

/** @param {number} count @param {string} one @param {string} [many] */
const counted = (count, one, many = `${one}s`) => `${inWords(count)} ${count === 1 ? one : many}`;
/** @param {string} prefix */
const below = (prefix) => (prefix === "" ? "all folders" : apart(prefix));

/**
 * Stop all runs that are not over, once it is confirmed.
 * @param {Which} which
 * @param {string} name of the folder or the batch
 */
export async function stopAll(which, name) {
  const found = /** @type {DryRun} */ (await call("POST", "/cancel", { ...which, dry_run: true }));
  if (found.stop === 0) return say(`No run of ${name} is unfinished.`);
  const question = `Stop ${counted(found.stop, "run")} of ${name}?`;
  const what = "Nothing is deleted: films and finished results stay.";
  if (!await confirmed(question, { what, yes: "stop", danger: true })) return;
  await call("POST", "/cancel", which);
  showBatches(true);
  say(`Runs of ${name} are being stopped.`);
}

/**
 * Make anew what failed, or else what was cancelled, once it is confirmed.
 * @param {Which} which
 * @param {string} name of the folder or the batch
 */
export async function retryAll(which, name) {
  for (const cancelled of [false, true]) {
    const found = /** @type {DryRun} */ (await call("POST", "/retry", { ...which, cancelled, dry_run: true }));
    if (found.again === 0) continue;
    const kind = cancelled ? "cancelled run" : "failed run";
    if (!await confirmed(`Make ${counted(found.again, kind)} of ${name} anew?`, { what: cost(found), yes: "retry" })) return;
    await call("POST", "/retry", { ...which, cancelled });
    showBatches(true);
    say(`Runs of ${name} are made anew.`);
    return;
  }
  say(`No run of ${name} failed or was cancelled.`);
}

/** @param {DryRun} found */
const cost = ({ seconds }) => (seconds === null ? "" : `That takes ${inTime(seconds)}.`);

/** @param {DryRun} found */
function outcomes(found) {
  const parts = [
    [found.run, "new"], [found.again, "made anew"], [found.exists, "there already"],
    [found.not_ready, "as soon as they were looked at"], [found.refused, "refused"],
  ].filter(([count]) => count).map(([count, words]) => `${inWords(Number(count))} ${words}`);
  return `${parts.join(", ")}${found.more ? ", and more" : ""}. ${cost(found)}`;
}

/**
 * Ask what to run on all films of a folder, say what that would do, and run it.
 * @param {string} prefix of their keys
 */
async function analyseAll(prefix) {
  const { choose } = await part(import("./choose.js"));
  await choose({
    title: `Analyse all films of ${below(prefix)}`,
    go: "analyse",
    film: null,
    from: null,
    act: async (choice) => {
      const asked = { prefix, ...choice };
      const found = /** @type {DryRun} */ (await call("POST", "/analyse", { ...asked, dry_run: true }));
      if (found.films === 0) throw new Error(`There is no film below ${below(prefix)}.`);
      const question = `Analyse ${counted(found.films, "film")} of ${below(prefix)}?`;
      if (!await confirmed(question, { what: outcomes(found), yes: "analyse" })) return false;
      await call("POST", "/analyse", asked);
      showBatches(true);
      say(`Asked for ${choice ? named(choice) : ""} of ${below(prefix)}.`);
      return true;
    },
  });
}

/** Begin what can be done with all films that the folder shown has. */
function start() {
  const folder = () => ofRuns().prefix;
  byId("many").append(
    element("button", { type: "button", "aria-haspopup": "dialog", onclick: told(() => analyseAll(folder())) }, "analyse all"),
    " ", element("button", { type: "button", onclick: told(() => stopAll({ prefix: folder() }, below(folder()))) }, "stop all"),
    " ", element("button", { type: "button", onclick: told(() => retryAll({ prefix: folder() }, below(folder()))) }, "retry failed"));
}

start();
