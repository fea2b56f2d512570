// The lists of runs and of files, and what a person is to see to; changed as the server tells.

import { call } from "./api.js";
import { byId, element, inWords } from "./dom.js";
import { fileRow } from "./files.js";
import { begin, isNarrowed, ofFiles, ofRuns } from "./filters.js";
import { LiveList } from "./live_list.js";
import { runCard, runRow } from "./runs.js";
import { remember, remembered } from "./memory.js";
import { complain } from "./say.js";
import { hear, listen } from "./stream.js";
import { summarise } from "./summary.js";

/** Pixels: page.css gives rows and cards these heights. */
const ROW = 64, CARD = 440;
/** Between two looks at what a person is to see to, milliseconds. */
const PAUSE_MS = 15_000;
const VIEW = "posedrop-view";

/**
 * @param {string} what "runs", "files"
 * @returns {(count: number, all: boolean) => void}
 */
const counted = (what) => (count, all) => {
  const more = all ? "" : "+";
  byId(`${what}-count`).textContent = count === 0 ? "" : `${inWords(count)}${more}`;
  byId(`no-${what}`).hidden = count > 0 || !all || isNarrowed();
  byId(`no-${what}-such`).hidden = count > 0 || !all || !isNarrowed();
  byId(`${what}-box`).hidden = count === 0;
};

/** Say why a list could not be read; that posedrop is away is told once, above all lists. @param {any} error */
function failed(error) {
  if (error.code !== "away") complain(error);
}

const asCards = { kind: /** @type {const} */ ("cards"), height: CARD, render: runCard };
const asTable = { kind: /** @type {const} */ ("table"), height: ROW, render: runRow };
/** @type {Record<string, string>} */
const RUN_FIELDS = { state: "status" };

const runs = new LiveList({
  path: "/analyses", id: "analysis_id", asked: ofRuns, scroller: byId("runs-box"), body: byId("runs"), look: asCards,
  field: (run, field) => run[RUN_FIELDS[field] ?? field] ?? "", counted: counted("runs"), failed,
});
const files = new LiveList({
  path: "/files", id: "file_id", asked: ofFiles, scroller: byId("files-box"), body: byId("files"),
  look: { kind: "table", height: ROW, render: fileRow },
  field: (file, field) => file[field] ?? "", counted: counted("files"), failed,
});

// Rules that are wrong, and what a person is to see to, such as a removal that was held back.
async function attend() {
  const [rules, notices] = await Promise.all([call("GET", "/rules"), call("GET", "/notices")]);
  byId("rules").replaceChildren(...rules.items.map((/** @type {any} */ rule) =>
    element("li", { class: "why" }, `${rule.rule} is wrong, the videos below it wait: ${rule.message}`)));
  byId("notices").replaceChildren(...notices.items.map((/** @type {any} */ notice) =>
    element("li", { class: "why" }, notice.message)));
}

let due = 0;
function attendSoon() {
  if (due !== 0) return;
  due = setTimeout(() => { due = 0; attend().catch(() => {}); }, PAUSE_MS);
}

/** Read the newest entries anew; what is shown behind them stays. */
function readNewest() {
  runs.soon();
  files.soon();
  tellSoon();
}

/** Read all that is shown anew: changes may have been missed. */
function readAnew() {
  runs.again();
  files.again();
  tellSoon();
}

/** What is said of all entries together changes with each of them. */
function tellSoon() {
  attendSoon();
  summarise(ofRuns().prefix);
}

/** Read the lists anew, from their beginnings. */
function restart() {
  runs.restart();
  files.restart();
  summarise(ofRuns().prefix);
}

/** @param {string} view "cards" or "table" */
function showAs(view) {
  const isTable = view === "table";
  for (const name of ["cards", "table"]) byId(`as-${name}`).setAttribute("aria-pressed", String(name === view));
  byId("runs").hidden = isTable;
  byId("runs-table").hidden = !isTable;
  byId("runs").replaceChildren();
  byId("runs-rows").replaceChildren();
  runs.showAs(isTable ? asTable : asCards, byId(isTable ? "runs-rows" : "runs"));
  remember(VIEW, view);
}

/** Begin: read the lists, and hear what changes. */
function start() {
  for (const name of ["cards", "table"]) byId(`as-${name}`).addEventListener("click", () => showAs(name));
  showAs(remembered(VIEW) === "table" ? "table" : "cards");
  begin(restart);
  hear("runs", (told) => { runs.take(told); summarise(ofRuns().prefix); });
  hear("files", (told) => { files.take(told); tellSoon(); });
  hear("fresh", readAnew);
  hear("refresh", readNewest);
  restart();
  attend().catch(() => {});
  listen();
}

start();
