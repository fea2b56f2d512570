// The poses of a run, as viewer.bin has them (docs/results.md).

const MAGIC = "PDVIEW1\n";
const MISSING = -32768;
const MOST = 32767;

/** @typedef {{individual: string, bodypart: string}} Column */

const aligned = (/** @type {number} */ bytes) => Math.ceil(bytes / 8) * 8;

/** The poses of one run: a row for each frame that was asked for, a column for each keypoint. */
export class Poses {
  /** @param {ArrayBuffer} buffer viewer.bin */
  constructor(buffer) {
    const { head, bytes } = headOf(buffer);
    /** @type {number} */ this.rows = head.rows;
    /** @type {Column[]} */ this.columns = head.columns;
    /** @type {number} */ this.width = head.width;
    /** @type {number} */ this.height = head.height;
    /** @type {number} */ this.pcutoff = head.pcutoff;
    /** @type {number} */ this.origin = head.origin;
    /** @type {number} */ this.step = head.step;
    let at = aligned(16 + bytes);
    /** When each row's frame is shown, in seconds from the film's first one on. */
    this.seconds = new Float64Array(buffer, at, this.rows);
    at += 8 * this.rows;
    /** The number of each row's frame in the film. */
    this.frames = new Int32Array(buffer, at, this.rows);
    at = aligned(at + 4 * this.rows);
    /** Whether each row's frame could be decoded. */
    this.decoded = new Uint8Array(buffer, at, this.rows);
    at = aligned(at + this.rows);
    /** x, y and likelihood of each column. */
    this.planes = this.columns.map((_, column) => [0, 1, 2].map((plane) =>
      new Int16Array(buffer, at + 2 * this.rows * (3 * column + plane), this.rows)));
    /** @type {string[]} */ this.bodyparts = [...new Set(this.columns.map((each) => each.bodypart))];
    /** @type {string[]} */ this.individuals = [...new Set(this.columns.map((each) => each.individual))];
    /** The two columns of each bone of each animal. */
    this.bones = bonesOf(this.columns, head.skeleton);
  }

  /**
   * A position in pixels, with (0, 0) in the middle of the first pixel; its likelihood, 0 to 1.
   * @param {number} column @param {number} row
   * @returns {{x: number, y: number, likelihood: number} | null} null: there is none
   */
  at(column, row) {
    const [x, y, likelihood] = this.planes[column];
    if (x[row] === MISSING) return null;
    return { x: this.value(0, x[row]), y: this.value(1, y[row]), likelihood: this.value(2, likelihood[row]) };
  }

  /** What a stored number stands for. @param {number} plane @param {number} stored */
  value(plane, stored) {
    if (stored === MISSING) return NaN;
    return plane === 2 ? stored / MOST : this.origin + stored * this.step;
  }

  /** The row of a frame, or of the nearest one that has a row. @param {number} frame */
  rowOf(frame) {
    return nearest(this.frames, frame);
  }

  /** The row of exactly this frame, -1: it has none. @param {number} frame */
  exactRowOf(frame) {
    const row = nearest(this.frames, frame);
    return this.frames[row] === frame ? row : -1;
  }
}

/**
 * What a viewer.bin begins with, once it is known that all of it is there.
 * @param {ArrayBuffer} buffer @returns {{head: any, bytes: number}} bytes: of the head
 * @throws {Error} it is damaged, or of another version: in words for a person
 */
function headOf(buffer) {
  const text = new TextDecoder();
  const anew = "Its tables can be downloaded; for this page, run the analysis anew with --force.";
  const damaged = new Error(`The poses of this run can't be shown: its viewer.bin is damaged. ${anew}`);
  const magic = text.decode(new Uint8Array(buffer, 0, Math.min(8, buffer.byteLength)));
  if (magic !== MAGIC && /^PDVIEW\d\n$/.test(magic)) {
    throw new Error("The poses of this run can't be shown: its viewer.bin is of another posedrop than this page. Update the server's handlers, then reload.");
  }
  if (buffer.byteLength < 16 || magic !== MAGIC) throw damaged;
  const bytes = new DataView(buffer).getUint32(8, true);
  let head;
  try {
    head = JSON.parse(text.decode(new Uint8Array(buffer, 16, bytes)));
  } catch {
    throw damaged;
  }
  const { rows, columns, width, height, skeleton } = head ?? {};
  const isPair = (/** @type {any} */ pair) => Array.isArray(pair) && pair.length === 2;
  const isNamed = (/** @type {any} */ each) => typeof each?.individual === "string" && typeof each.bodypart === "string";
  if (!Number.isInteger(rows) || rows < 0 || !(width > 0) || !(height > 0)) throw damaged;
  if (!Array.isArray(columns) || !columns.every(isNamed) || !Array.isArray(skeleton) || !skeleton.every(isPair)) throw damaged;
  const whole = [16 + bytes, 8 * rows, 4 * rows, rows].reduce((sum, each) => sum + aligned(each), 0) + 6 * rows * columns.length;
  if (buffer.byteLength < whole) {
    throw new Error(`The poses of this run can't be shown: its viewer.bin is cut short, ${buffer.byteLength} of ${whole} bytes. ${anew}`);
  }
  return { head, bytes };
}

/** @param {Column[]} columns @param {[string, string][]} skeleton @returns {[number, number][]} */
function bonesOf(columns, skeleton) {
  const nameOf = (/** @type {string} */ individual, /** @type {string} */ bodypart) => JSON.stringify([individual, bodypart]);
  const known = new Map(columns.map((each, column) => [nameOf(each.individual, each.bodypart), column]));
  return skeleton.flatMap(([one, other]) => columns.flatMap((each, column) => {
    const end = each.bodypart === one ? known.get(nameOf(each.individual, other)) : undefined;
    return end === undefined ? [] : [/** @type {[number, number]} */ ([column, end])];
  }));
}

/**
 * A name within a sentence: whichever way it is written, the words beside it stay where they are.
 * @param {string} name
 */
export const within = (name) => `\u2068${name.replace(/[\u202a-\u202e\u2066-\u2069]/g, "")}\u2069`;

/**
 * The place of the value that is nearest to one, among ascending ones.
 * @param {ArrayLike<number>} values @param {number} value
 */
export function nearest(values, value) {
  let low = 0;
  let high = values.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low > 0 && value - values[low - 1] <= values[low] - value ? low - 1 : low;
}

/** Colours of so many things that are told apart. @param {number} count */
export const colours = (count) => Array.from({ length: count }, (_, i) => hue((300 * i) / Math.max(1, count)));

/** @param {number} degrees @returns {[number, number, number]} red, green, blue: 0 to 255 */
function hue(degrees) {
  const of = (/** @type {number} */ n) => {
    const k = (n + degrees / 30) % 12;
    return Math.round(255 * (0.52 - 0.44 * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [of(0), of(8), of(4)];
}
