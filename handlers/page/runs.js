// Runs, as cards and as rows of a table: how far they are, why they wait, and what can be done.

import { call, serverNow } from "./api.js";
import { apart, clockOf, element, picture, shortName, when } from "./dom.js";
import { part, say, told } from "./say.js";
import { hear, refresh } from "./stream.js";

/**
 * A run, as GET /analyses has it.
 * @typedef {object} Run
 * @property {string} analysis_id
 * @property {string} file_id
 * @property {string} key
 * @property {string} analysis
 * @property {Record<string, any>} args
 * @property {string} status
 * @property {{message: string} | null} error
 * @property {string[]} files
 * @property {string | null} labelled_video
 * @property {string | null} model
 * @property {string | null} asked_by
 * @property {number | null} quality
 * @property {string[] | null} quality_reasons
 * @property {string} created_at
 * @property {string | null} finished_at
 */

/** @typedef {{id: string, attempt: number, stage: string, done: number, total: number | null, frames_per_second: number | null, ends_at: string | null}} Progress */
/** @typedef {{gpu_workers: number, all: boolean, runs: {id: string, name: string, waits: boolean, ends_at: string | null}[]}} Queue */

export const OVER = new Set(["succeeded", "partial", "failed", "cancelled"]);
export const ASKED_BY = new Map([["api", "a person or program"], ["metadata", "the film's metadata"], ["folder", "its folder's rule"], ["default", "the server's default"]]);

/** A video that fails sooner again than this has another reason than its link. */
const RENEW_MS = 10_000;

/** @type {Map<string, Progress>} of the runs that are worked on, by their ids */
let progress = new Map();
/** @type {Queue} */
let queue = { gpu_workers: 1, all: true, runs: [] };
/** @type {Map<string, {run: Run, text: HTMLElement, bar: HTMLProgressElement}>} what shows an unfinished run */
const shown = new Map();

hear("progress", (/** @type {Progress[]} */ items) => {
  progress = new Map(items.map((item) => [item.id, item]));
  tellAll();
});
hear("queue", (/** @type {Queue} */ now) => { queue = now; tellAll(); });

function tellAll() {
  for (const [name, each] of shown) {
    if (each.text.isConnected) tell(each);
    else shown.delete(name);
  }
}

/**
 * When something will be over: "about 14:05, in 3 min".
 * @param {string | null} time
 */
function until(time) {
  if (time === null) return "";
  const end = new Date(time);
  const minutes = Math.round((end.getTime() - serverNow()) / 60000);
  const left = minutes < 1 ? "in less than a minute" : minutes < 120 ? `in ${minutes} min` : `in ${Math.round(minutes / 60)} h`;
  const clock = minutes < 1200 ? clockOf(end) : when(end);
  return `, done about ${clock}, ${left}`;
}

/**
 * How far a run is, or why it waits, in words.
 * @param {Run} run
 */
function words(run) {
  const at = progress.get(run.analysis_id);
  if (at) {
    const frames = at.total ? ` ${at.done}/${at.total}` : "";
    const speed = at.frames_per_second ? `, ${at.frames_per_second.toFixed(1)} frames/s` : "";
    const again = at.attempt > 1 ? `, attempt ${at.attempt}` : "";
    return `${at.stage}${frames}${speed}${again}${until(at.ends_at)}`;
  }
  const before = queue.runs.findIndex((each) => each.id === run.analysis_id);
  if (before < 0) return run.status === "running" ? "" : queue.all ? "waits for a worker" : `waits: more than ${queue.runs.length} are before it`;
  const idle = queue.gpu_workers === 0 ? "; no gpu worker is running: start one" : "";
  const names = queue.runs.slice(Math.max(0, before - 3), before).map((each) => apart(each.name)).reverse();
  const which = before === 0 ? "it is next" : `${before} before it: ${names.join(", ")}${before > names.length ? ", …" : ""}`;
  return `waits, ${which}${idle}${until(queue.runs[before].ends_at)}`;
}

/** @param {{run: Run, text: HTMLElement, bar: HTMLProgressElement}} each */
function tell({ run, text, bar }) {
  const at = progress.get(run.analysis_id);
  text.textContent = words(run);
  text.title = text.textContent;
  if (at?.total) { bar.max = at.total; bar.value = at.done; } else bar.removeAttribute("value");
  bar.hidden = !at && run.status !== "running";
}

/** @param {Run} run */
function unfinished(run) {
  const text = element("span", { class: "small" });
  const bar = element("progress", { "aria-label": `progress of ${shortName(run.key)}` });
  const each = { run, text, bar };
  shown.set(run.analysis_id, each);
  tell(each);
  return each;
}

// DeepLabCut's names begin with the film's and the scorer's, which are the same on all of a card.
/**
 * @param {string} name
 * @param {string[]} all
 */
function withoutSame(name, all) {
  const tables = all.filter((each) => /\.(h5|csv)$/.test(each) && each !== "timestamps.csv");
  let same = tables[0] ?? "";
  for (const each of tables) while (!each.startsWith(same)) same = same.slice(0, -1);
  same = same.replace(/[._]$/, "");
  return tables.length > 1 && same && name.startsWith(same) ? `poses${name.slice(same.length)}` : name;
}

/** @param {Run} run @param {string} name */
const url = (run, name) => `/download/${run.analysis_id}/${encodeURIComponent(name)}`;
/** @param {Run} run */
const what = (run) => (run.model ? `${run.analysis}, ${run.model}` : run.analysis);

/**
 * What can be done with a run.
 * @param {Run} run
 */
function buttons(run) {
  const name = shortName(run.key);
  const attempts = element("button", {
    "aria-haspopup": "dialog", "aria-label": `attempts at ${name}`, onclick: told(async () => (await part(import("./attempts.js"))).showAttempts(run.analysis_id, name)),
  }, "attempts");
  if (!OVER.has(run.status)) {
    return [attempts, element("button", {
      "aria-label": `cancel ${name}`,
      onclick: told(async () => { await call("DELETE", `/analyse/${run.analysis_id}?only=cancel`); say(`${name} is being cancelled.`); }),
    }, "cancel")];
  }
  const made = [attempts];
  if (run.status !== "succeeded") {
    made.push(element("button", {
      "aria-label": `retry ${name}`,
      onclick: told(async () => {
        const { file_id, analysis, args } = run;
        await call("POST", "/analyse", { file_id, analysis, args, force: run.status === "partial" });
        say(`Asked for ${what(run)} of ${name} again.`);
        refresh();
      }),
    }, "retry"));
  }
  made.push(element("button", { "aria-haspopup": "dialog", onclick: told(async () => (await part(import("./choose.js"))).analyseAgain(run)) }, "retry with changes"));
  return made;
}

/**
 * A video that plays on, however long it was paused: its address leads to the store by a link that ends.
 * @param {string} src
 * @param {string} poster
 */
export function player(src, poster) {
  const video = element("video", { src, poster, controls: "", preload: "none" });
  let has = false; // that it could be played
  let renewed = -RENEW_MS;
  video.addEventListener("loadedmetadata", () => { has = true; });
  video.addEventListener("error", () => {
    if (!has || performance.now() - renewed < RENEW_MS) return;
    renewed = performance.now();
    const { currentTime, paused } = video;
    video.addEventListener("loadedmetadata", () => {
      video.currentTime = currentTime;
      if (!paused) video.play().catch(() => {}); // whoever looks has the button
    }, { once: true });
    video.preload = "metadata";
    video.load(); // by the address, which gives a new link
  });
  return video;
}

/**
 * A run as a card.
 * @param {Run} run
 */
export function runCard(run) {
  const card = element("article", { class: "card" });
  if (run.labelled_video) {
    card.append(player(url(run, run.labelled_video), `/thumbnail/${run.file_id}`));
  } else {
    card.append(picture(run.file_id, { class: "poster", loading: "lazy" }));
  }
  card.append(
    element("h3", { title: run.key }, shortName(run.key)),
    element("p", {}, element("span", { class: `state ${run.status}` }, run.status), ` ${what(run)}`),
    element("p", { class: "small" }, `${run.analysis_id}, ${when(run.created_at)}`),
    OVER.has(run.status) ? element("p", {}, element("a", { href: `/run/${run.analysis_id}` }, "look at its poses")) : "",
  );
  if (run.error) card.append(element("p", { class: "why", title: run.error.message }, run.error.message));
  if (run.quality !== null) {
    const [worst, ...others] = run.quality_reasons ?? [];
    const why = worst === undefined ? "" : `: ${worst}`;
    card.append(element("p", { class: "small", title: others.join("\n") }, `quality ${run.quality}${why}`));
  }
  if (OVER.has(run.status)) {
    const names = ["result.json", ...run.files.filter((name) => name !== run.labelled_video)];
    card.append(element("p", { class: "links" },
      ...names.map((name) => element("a", { href: url(run, name), title: name }, withoutSame(name, run.files)))));
  } else {
    const { text, bar } = unfinished(run);
    card.append(element("p", {}, text), bar);
  }
  card.append(element("p", { class: "buttons-left" }, ...buttons(run)));
  return card;
}

/**
 * A run as a row of the table.
 * @param {Run} run
 */
export function runRow(run) {
  const state = element("td", {}, element("span", { class: `state ${run.status}` }, run.status));
  if (!OVER.has(run.status)) {
    const { text, bar } = unfinished(run);
    state.append(" ", text, bar);
  } else if (run.error) {
    state.append(element("div", { class: "why", title: run.error.message }, run.error.message));
  }
  const name = OVER.has(run.status)
    ? element("a", { href: `/run/${run.analysis_id}` }, shortName(run.key)) : shortName(run.key);
  const quality = run.quality === null ? "" : String(run.quality);
  const by = ASKED_BY.get(run.asked_by ?? "") ?? "";
  return element("tr", {},
    element("td", { title: run.key }, element("div", {}, name), element("div", { class: "small" }, run.key.split("/").slice(0, -1).join("/"))),
    state,
    element("td", { title: what(run) }, element("div", {}, run.analysis), element("div", { class: "small" }, run.model ?? "")),
    element("td", { title: (run.quality_reasons ?? []).join("\n") }, quality),
    element("td", { title: `${when(run.created_at)}${by ? `, by ${by}` : ""}` },
      element("div", {}, when(run.created_at)), element("div", { class: "small" }, by)),
    element("td", {}, element("div", { class: "actions" }, ...buttons(run))));
}
