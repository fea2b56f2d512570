// Begins the page of a run: /run/<id>?with=<another>#frame=812.

import { ApiError, call } from "./api.js";
import { byId, element, shortName } from "./dom.js";
import { differences } from "./viewer_compare.js";
import { wire } from "./viewer_controls.js";
import { Film, looked, TELLS } from "./viewer_film.js";
import { draw } from "./viewer_overlay.js";
import { Poses } from "./viewer_poses.js";
import { plot } from "./viewer_plot.js";

/** @typedef {import("./viewer_overlay.js").Layer} Layer */

const ASK_AGAIN_MS = 2000;
/** After a film that can't be had, at first and at most. */
const [AGAIN_MS, AGAIN_MOST_MS] = [3000, 300_000];
/** A film that fails so soon after it was there fails again. */
const SOON_MS = 10_000;
/** How often a file of the store is asked for, and for how long it may send nothing. */
const [TRIES, SILENT_MS] = [4, 30_000];
const id = decodeURIComponent(location.pathname.split("/").pop() ?? "");
const other = new URLSearchParams(location.search).get("with");

const said = (/** @type {string} */ words) => { byId("message").textContent = words; };
const note = (/** @type {string} */ words) => { byId("note").textContent = words; };

/** What a run's page shows: GET /view. @param {string} run @param {boolean} [copy] @returns {Promise<any>} */
const view = (run, copy = !TELLS) => call("GET", `/view/${encodeURIComponent(run)}${copy ? "?copy=true" : ""}`);

/** Wait until something is there. @param {string} run @param {"film" | "poses"} what @param {any} answer @param {boolean} [copy] */
async function ready(run, what, answer, copy = !TELLS) {
  let found = answer;
  if (found[what].state !== "making") return found[what];
  while (found[what].state === "making") {
    const { progress, message } = found[what];
    const far = progress?.total ? ` (${progress.stage} ${progress.done} of ${progress.total} frames)` : "";
    (what === "film" ? note : said)(what === "film"
      ? `Browsers can't step through this film as it is; a copy of it is being made${far}. The poses are here.`
      : message);
    await new Promise((resolve) => { setTimeout(resolve, ASK_AGAIN_MS); });
    if (what === "film") await looked(); // its URL would end while nobody looks
    found = await view(run, copy).catch((error) => {
      if (error instanceof ApiError && error.status < 500) throw error;
      return found; // the server will be there again
    });
  }
  (what === "film" ? note : said)("");
  return found[what];
}

/** A file of the store, as far as this browser gets it. @param {string} url @returns {Promise<ArrayBuffer>} */
async function once(url) {
  const stop = new AbortController();
  let timer = setTimeout(() => stop.abort(), SILENT_MS);
  try {
    const response = await fetch(url, { signal: stop.signal });
    if (!response.ok) throw new ApiError(response.status, { message: `The store said ${response.status} where the poses are.` });
    const reader = /** @type {ReadableStream<Uint8Array<ArrayBuffer>>} */ (response.body).getReader();
    const parts = [];
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      clearTimeout(timer);
      timer = setTimeout(() => stop.abort(), SILENT_MS);
      parts.push(part.value);
    }
    return await new Blob(parts).arrayBuffer();
  } finally {
    clearTimeout(timer);
  }
}

/** A file of the store: one that is busy, or away for a moment, is asked again, some times. @param {string} url */
async function fetched(url) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await once(url);
    } catch (error) {
      const isForGood = error instanceof ApiError && error.status < 500;
      if (isForGood || tries === TRIES) {
        throw error instanceof ApiError ? error
          : new Error("The store can't be reached from this browser: it is away, or its CORS rules do not allow GET for this page (docs/deploy.md).");
      }
      said(`The store does not give the poses; it is asked again (${tries} of ${TRIES - 1}).`);
      await new Promise((resolve) => { setTimeout(resolve, ASK_AGAIN_MS); });
    }
  }
}

/** @param {string} run @param {any} answer @returns {Promise<Poses>} */
async function posesOf(run, answer) {
  const file = await ready(run, "poses", answer);
  if (file.state !== "there") throw new Error(file.message);
  said("Fetching the poses.");
  const poses = new Poses(await fetched(file.url));
  if (!poses.rows) throw new Error("This run has no frames to show.");
  said("");
  return poses;
}

/** @param {Poses} poses @param {boolean} isOther @returns {Layer} */
const layerOf = (poses, isOther) => ({ poses, visible: poses.columns.map(() => true), colours: [], other: isOther });

/** All that the controls change, and what has to be drawn anew when they do. */
export class State {
  /** @param {Layer[]} layers */
  constructor(layers) {
    this.layers = layers;
    const { poses } = layers[0];
    this.style = { pcutoff: poses.pcutoff, trail: 0, skeleton: true };
    /** @type {[number, number]} */ this.range = [0, poses.rows];
    this.film = new Film(byId("stage"), poses, {
      shown: (row) => this.shown(row),
      changed: () => this.onChanged(),
      failed: (why) => this.failed(why),
      doubted: () => this.useCopy(),
    });
    this.onShown = (/** @type {number} */ _) => {};
    this.onChanged = () => {};
    this.wantsCopy = !TELLS;
    this.failures = 0;
    this.loading = false;
    this.loaded = 0;
    /** Films that this browser did not play, before any that it did. */
    this.unplayed = 0;
  }

  get poses() {
    return this.layers[0].poses;
  }

  /** @param {number} row */
  shown(row) {
    this.draw();
    this.onShown(row);
  }

  /** Draw what lies over the film. */
  draw() {
    const { poses } = this;
    // A copy has even sides.
    const size = /** @type {[number, number]} */ (this.film.isCopy
      ? [poses.width + (poses.width % 2), poses.height + (poses.height % 2)] : [poses.width, poses.height]);
    draw(/** @type {HTMLCanvasElement} */ (byId("overlay")), this.layers, poses.frames[this.film.row], this.style, size);
  }

  /** Plot all three planes. */
  plot() {
    for (const canvas of /** @type {NodeListOf<HTMLCanvasElement>} */ (document.querySelectorAll(".plot canvas"))) {
      const plane = Number(canvas.dataset.plane);
      const [low, high] = plot(canvas, plane, this.layers, this.range, this.style.pcutoff);
      const label = /** @type {HTMLElement} */ (canvas.previousElementSibling);
      if (plane < 2) label.textContent = `${"xy"[plane]}, ${low.toFixed(0)} to ${high.toFixed(0)} pixels`;
    }
  }

  /** Show a film, and ask for its next URL before this one ends. @param {any} file of GET /view */
  async show(file) {
    clearTimeout(this.timer);
    if (file.state !== "there") {
      this.film.drop();
      note(file.message);
      return;
    }
    this.unplayed += this.loaded ? 0 : 1;
    await this.film.load(file.url, file.is_copy);
    this.unplayed = 0;
    this.loaded = performance.now();
    const { size } = this.film;
    if (size) byId("stage").style.setProperty("--shape", String(size[0] / size[1]));
    window.dispatchEvent(new Event("resize"));
    note("");
    this.timer = setTimeout(() => this.renew(), 800 * file.seconds);
  }

  /** Get a new URL, as there is none yet, or the one before ends or has ended. @param {any} [given] an answer of GET /view that is new */
  async renew(given) {
    if (this.loading) return;
    this.loading = true;
    const copy = this.wantsCopy;
    const { unplayed } = this;
    try {
      await looked(); // else the URL may have ended by the time that the film is loaded
      const answer = given ?? await view(id, copy);
      if (answer.film.state === "making" && this.film.video?.error) this.film.drop();
      await this.show(await ready(id, "film", answer, copy));
    } catch (error) {
      if (this.unplayed > unplayed && !copy) {
        // The store may have refused the URL, as it has ended: once more. Then this browser lacks the decoder.
        if (this.unplayed > 1) this.wantsCopy = true;
      } else {
        this.failures += 1;
        this.wait(error.message);
      }
    } finally {
      this.loading = false;
    }
    if (this.wantsCopy !== copy || (this.unplayed === 1 && unplayed === 0)) await this.renew();
  }

  /** Get the film anew once it has failed: at once, but not for ever. @param {string} why */
  failed(why) {
    this.failures = performance.now() - this.loaded < SOON_MS ? this.failures + 1 : 1;
    if (this.failures > 3) this.wait(why);
    else this.renew();
  }

  /** Go on without the film for some time. @param {string} why */
  wait(why) {
    const wait = Math.min(AGAIN_MOST_MS, AGAIN_MS * 2 ** this.failures);
    // One that still plays is kept, unless it was doubted.
    if (this.film.video?.error || this.wantsCopy !== this.film.isCopy) this.film.drop();
    if (!this.film.video) note(`The film can't be shown, the poses are here; in ${wait / 1000} seconds the film is asked for again. Why: ${why}`);
    this.timer = setTimeout(() => this.renew(), wait);
  }

  /** Have a copy in place of a film whose frames this browser shows at other times. */
  async useCopy() {
    if (this.wantsCopy) return;
    this.wantsCopy = true;
    await this.renew();
  }
}

/** @param {any} answer */
function about(answer) {
  const name = shortName(answer.key);
  document.title = name ? `${name}: posedrop` : "posedrop: a run";
  const what = answer.model ? `${answer.analysis}, ${answer.model}` : answer.analysis;
  byId("about").replaceChildren(element("b", { title: answer.key ?? "" }, element("bdi", {}, name)), ` ${what} `,
    element("span", { class: `state ${answer.status}` }, answer.status),
    answer.quality ? ` quality ${answer.quality.score} ` : " ", element("span", { class: "small" }, answer.analysis_id));
}

async function begin() {
  let answer;
  try {
    answer = await view(id);
    about(answer);
    const poses = await posesOf(id, answer);
    const layers = [layerOf(poses, false)];
    const words = answer.error ? [`This run ${answer.status}: ${answer.error.message} What it made is here.`] : [];
    if (other) {
      try {
        layers.push(layerOf(await posesOf(other, await view(other)), true));
      } catch (error) {
        words.push(`The other run, ${other}, can't be shown: ${error.message}`);
      }
    }
    said(words.join(" "));
    const state = new State(layers);
    byId("stage").style.setProperty("--shape", String(poses.width / poses.height));
    byId("viewer").hidden = false;
    wire(state, answer.quality);
    if (layers.length > 1) differences(state, id, /** @type {string} */ (other));
    await state.renew(document.hidden ? undefined : answer);
  } catch (error) {
    if (byId("about").textContent?.startsWith("Opening")) byId("about").textContent = id;
    const isAway = !answer && !(error instanceof ApiError && error.status < 500);
    said(isAway ? `${error.message} It is asked again.` : error.message);
    const isOver = answer && ["succeeded", "partial", "failed", "cancelled"].includes(answer.status);
    if (isAway || (answer && !isOver)) setTimeout(begin, ASK_AGAIN_MS);
  }
}

begin();
