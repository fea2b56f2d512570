// Shows the film of a run frame by frame: which frame is on the screen is what the browser says of it.
//
// A frame is asked for by the middle of the time for which it is shown, and its number is told once
// the browser has shown a frame of that time (requestVideoFrameCallback). A new URL, as the old one
// ends, gets a video element of its own, which takes the other's place when it shows the same frame.

import { nearest, Poses } from "./viewer_poses.js";

const TRIES = 4;
const WHERE = [0.5, 0.75, 0.25, 0.9];
/** How long the picture may come after its seek is said to be done; of a busy machine twice as long with each try. */
const LATE_MS = 250;
const FIRST_MS = 8000;
/** Whether the browser says which frame it shows; else it is taken to be that of the current time: of a copy alone. */
export const TELLS = "requestVideoFrameCallback" in HTMLVideoElement.prototype;

/** The film of a run, or the time line alone where there is none. */
export class Film {
  /**
   * @param {HTMLElement} stage where the video elements go
   * @param {Poses} poses of the run
   * @param {{shown: (row: number) => void, changed: () => void, failed: (why: string) => void, doubted: () => void}} tell
   */
  constructor(stage, poses, tell) {
    this.stage = stage;
    this.poses = poses;
    this.tell = tell;
    this.row = 0;
    this.playing = false;
    this.speed = 1;
    this.isCopy = false;
    /** @type {HTMLVideoElement | null} */ this.video = null;
    /** Seconds from a time of the table to the browser's. */
    this.offset = 0;
    /** @type {number[]} rows whose frames have a picture */
    this.pictured = [];
    poses.decoded.forEach((there, row) => { if (there) this.pictured.push(row); });
    this.times = Float64Array.from(this.pictured, (row) => poses.seconds[row]);
    /** @type {number} the place in `pictured` of what is on the screen; -1: nothing */
    this.place = -1;
    /** @type {number | null} */ this.wanted = null;
    this.seeking = false;
    /** @type {((place: number) => void) | null} */ this.waits = null;
    this.doubts = 0;
    /** @type {number | null} a row that the browser did not show */ this.missed = null;
  }

  /** Show the film behind a URL, from the frame on that is shown now. @param {string} url @param {boolean} isCopy */
  async load(url, isCopy) {
    await looked();
    const video = document.createElement("video");
    Object.assign(video, { muted: true, playsInline: true, preload: "auto", disablePictureInPicture: true });
    this.stage.prepend(video);
    try {
      const first = this.#firstFrame(video, isCopy);
      first.catch(() => {}); // said by what is awaited first
      video.src = url;
      await once(video, "loadeddata");
      const begin = await first;
      const wasPlaying = this.playing;
      this.video?.pause();
      this.video?.remove();
      this.video = video;
      this.isCopy = isCopy;
      // A copy begins with the first frame that was asked for, a film with its own first one.
      this.offset = begin - (isCopy ? this.times[0] ?? 0 : 0);
      this.place = -1;
      this.#follow(video);
      video.onerror = () => { if (video === this.video) this.tell.failed(reason(video)); };
      video.onended = () => this.pause();
      const goal = this.missed ?? this.goal;
      this.missed = null;
      await this.seek(goal);
      if (wasPlaying) this.#play();
    } catch (error) {
      if (this.video !== video) video.remove();
      throw error;
    }
  }

  /** Go on without pictures. */
  drop() {
    const { video } = this;
    this.video = null;
    video?.remove();
    if (this.playing) this.#pretend();
    else this.tell.shown(this.row);
  }

  /** Width and height of the pictures, as the browser shows them; null: there are none. */
  get size() {
    return this.video?.videoWidth ? [this.video.videoWidth, this.video.videoHeight] : null;
  }

  /** Go to a row; of several that are asked for in a row the last one counts. @param {number} row */
  async seek(row) {
    this.wanted = Math.max(0, Math.min(this.poses.rows - 1, row));
    if (this.seeking) return;
    this.seeking = true;
    try {
      while (this.wanted !== null) {
        const next = /** @type {number} */ (this.wanted);
        // Not done where another element has taken the place of this one meanwhile.
        if (await this.#show(next) && this.wanted === next) this.wanted = null;
      }
    } finally {
      this.seeking = false;
    }
  }

  /** Where the next step begins: what is asked for, else what is shown. */
  get goal() {
    return this.wanted ?? this.row;
  }

  toggle() {
    if (this.playing) this.pause();
    else this.#play();
  }

  pause() {
    if (!this.playing) return;
    this.playing = false;
    this.video?.pause();
    this.tell.changed();
    this.place = -1; // the browser may have gone on by a frame
    this.seek(this.row);
  }

  /** @param {number} speed */
  setSpeed(speed) {
    this.speed = speed;
    if (this.video) this.video.playbackRate = speed;
    if (this.playing && !this.video) this.#pretend();
  }

  #play() {
    if (this.row >= this.poses.rows - 1) this.row = 0;
    this.playing = true;
    this.tell.changed();
    const video = this.video;
    if (!video) {
      this.#pretend();
      return;
    }
    this.seek(this.row).then(() => {
      if (!this.playing || video !== this.video) return;
      video.playbackRate = this.speed;
      video.play().catch(() => this.pause());
    });
  }

  /** Let the frames go by without a film. */
  #pretend() {
    const begin = performance.now();
    const [from, speed, seconds] = [this.poses.seconds[this.row], this.speed, this.poses.seconds];
    const tick = () => {
      if (!this.playing || this.video || speed !== this.speed) return;
      this.#told(nearest(seconds, from + (speed * (performance.now() - begin)) / 1000));
      if (this.row >= this.poses.rows - 1) this.pause();
      else requestAnimationFrame(tick);
    };
    tick();
  }

  /** @param {number} row */
  #told(row) {
    this.row = row;
    this.tell.shown(row);
  }

  /** Have the picture of a row on the screen; a lost frame has that of the one before it. @param {number} row */
  async #show(row) {
    const video = this.video;
    if (!video || !this.pictured.length) {
      this.#told(row);
      return true;
    }
    if (video.error) { // another one is on its way, or none
      await pause(100);
      return false;
    }
    let place = nearest(this.pictured, row);
    if (this.pictured[place] > row && place > 0) place -= 1;
    for (let tries = 0; this.place !== place && tries < TRIES; tries += document.hidden ? 0 : 1) {
      await looked();
      await this.#presented(video, this.#timeOf(place, WHERE[tries]), place, LATE_MS * 2 ** tries);
      if (video !== this.video || video.error) return false;
    }
    const isRight = this.place === place;
    this.#told(isRight ? row : this.pictured[this.place] ?? row);
    if (!isRight && !this.isCopy) {
      this.missed = row;
      this.tell.doubted();
    }
    return true;
  }

  /** A time at which the browser shows a picture. @param {number} place @param {number} part of its time, 0 to 1 */
  #timeOf(place, part) {
    const { times } = this;
    const end = times[place + 1] ?? times[place] + (place ? times[place] - times[place - 1] : 0.04);
    return Math.max(0, this.offset + times[place] + part * (end - times[place]));
  }

  /**
   * Seek, and wait for a picture; for another one for a moment only, as it may be a late one.
   * @param {HTMLVideoElement} video @param {number} time seconds @param {number} place @param {number} moment ms
   */
  async #presented(video, time, place, moment) {
    const seeked = once(video, "seeked").catch(() => {});
    const found = new Promise((resolve) => {
      this.waits = (shown) => { if (shown === place) resolve(undefined); };
    });
    video.currentTime = time;
    if (!TELLS) {
      await seeked;
      this.#onPicture(video.currentTime, true);
    } else {
      const late = seeked.then(() => pause(moment));
      await Promise.race([found, late, pause(8000)]);
    }
    this.waits = null;
  }

  /** @param {HTMLVideoElement} video */
  #follow(video) {
    if (!TELLS) {
      video.ontimeupdate = () => { if (this.playing) this.#onPicture(video.currentTime, true); };
      return;
    }
    const tick = (/** @type {number} */ _, /** @type {{mediaTime: number}} */ told) => {
      if (video !== this.video) return;
      this.#onPicture(told.mediaTime, false);
      video.requestVideoFrameCallback(tick);
    };
    video.requestVideoFrameCallback(tick);
  }

  /** @param {number} time the browser's, of the picture on the screen @param {boolean} isAny within its time */
  #onPicture(time, isAny) {
    const at = time - this.offset;
    let place = nearest(this.times, at);
    if (isAny && this.times[place] > at && place > 0) place -= 1;
    const gap = Math.min((this.times[place + 1] ?? Infinity) - this.times[place],
      this.times[place] - (this.times[place - 1] ?? -Infinity));
    const last = this.poses.rows - 1;
    const isOutside = at > this.times[this.times.length - 1] || at < this.times[0];
    if (!isAny && !isOutside && Math.abs(this.times[place] - at) > Math.max(2e-5, gap / 4)) {
      this.doubts += 1;
      if (this.doubts > 2 && !this.isCopy) this.tell.doubted();
    }
    this.place = place;
    this.waits?.(place);
    if (!this.playing || this.seeking) return;
    this.#told(this.pictured[place]);
    if (this.row >= last) this.pause();
  }

  /** The browser's time of a film's first frame; a copy's is 0. @param {HTMLVideoElement} video @param {boolean} isCopy @returns {Promise<number>} */
  async #firstFrame(video, isCopy) {
    if (isCopy) return 0;
    if (!TELLS) throw new Error("the browser does not say which frame it shows");
    const first = new Promise((resolve) => {
      video.requestVideoFrameCallback((_, told) => resolve(told.mediaTime));
    });
    const late = once(video, "loadeddata").then(() => pause(FIRST_MS)).then(() => {
      throw new Error("the browser does not show its first frame");
    });
    return Promise.race([first, late]);
  }
}

const pause = (/** @type {number} */ ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

/** Wait until the page is looked at: on one that is not, browsers present no pictures. */
export async function looked() {
  while (document.hidden) await new Promise((resolve) => { document.addEventListener("visibilitychange", resolve, { once: true }); });
}

/** @param {HTMLVideoElement} video @param {string} name */
function once(video, name) {
  const heard = new AbortController();
  const { signal } = heard;
  return new Promise((resolve, reject) => {
    video.addEventListener(name, resolve, { signal });
    video.addEventListener("error", () => reject(new Error(reason(video))), { signal });
  }).finally(() => heard.abort());
}

/** @param {HTMLVideoElement} video */
const reason = (video) => video.error?.message || "the browser can't play it";
