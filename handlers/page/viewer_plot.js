// Plots a plane of the poses over the rows: of all that falls into a column of pixels its least and most.

import { fit } from "./viewer_overlay.js";
import { Poses } from "./viewer_poses.js";

const MISSING = -32768;

/** @typedef {{poses: Poses, visible: boolean[], colours: [number, number, number][], other: boolean}} Layer */

/**
 * Plot one of x, y (0, 1; pixels, y down as in the film) and likelihood (2; 0 to 1).
 * @param {HTMLCanvasElement} canvas
 * @param {number} plane
 * @param {Layer[]} layers the first one has the rows
 * @param {[number, number]} range first row, and the one behind the last
 * @param {number} pcutoff
 */
export function plot(canvas, plane, layers, range, pcutoff) {
  fit(canvas);
  const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const image = pen.createImageData(canvas.width, canvas.height);
  const pixels = new Uint32Array(image.data.buffer);
  const [low, high] = limits(plane, layers, range, canvas.width);
  const isDown = plane === 1;
  const scale = (canvas.height - 1) / Math.max(1e-9, high - low);
  const level = (/** @type {number} */ value) =>
    Math.round(isDown ? (value - low) * scale : (high - value) * scale);
  if (plane === 2) {
    const y = level(pcutoff);
    for (let x = 0; x < canvas.width; x += 4) pixels[y * canvas.width + x] = 0xff888888;
  }
  for (const layer of [...layers].reverse()) {
    const rows = layer === layers[0] ? range : rowsOf(layer.poses, layers[0].poses, range);
    layer.visible.forEach((isVisible, column) => {
      if (!isVisible) return;
      const [red, green, blue] = layer.colours[column];
      const colour = ((layer.other ? 0x70000000 : 0xff000000) | (blue << 16) | (green << 8) | red) >>> 0;
      line(pixels, canvas.width, canvas.height, envelope(layer.poses, column, plane, rows, canvas.width),
        (stored) => level(layer.poses.value(plane, stored)), colour);
    });
  }
  pen.putImageData(image, 0, 0);
  return [low, high];
}

/** The rows of another run that are of the same frames. @param {Poses} poses @param {Poses} first @param {[number, number]} range @returns {[number, number]} */
function rowsOf(poses, first, range) {
  if (!poses.rows || !first.rows) return [0, 0];
  return [poses.rowOf(first.frames[range[0]]), poses.rowOf(first.frames[Math.max(0, range[1] - 1)]) + 1];
}

/** The least and the most that is plotted. @param {number} plane @param {Layer[]} layers @param {[number, number]} range @param {number} width */
function limits(plane, layers, range, width) {
  if (plane === 2) return [0, 1];
  let low = 32767;
  let high = MISSING;
  const { poses, visible } = layers[0];
  visible.forEach((isVisible, column) => {
    if (!isVisible) return;
    const found = envelope(poses, column, plane, range, width);
    low = Math.min(low, found.low);
    high = Math.max(high, found.high);
  });
  if (low > high) return [0, plane === 0 ? poses.width : poses.height];
  return [poses.value(plane, low) - 1, poses.value(plane, high) + 1];
}

/**
 * What a column of the poses has in each column of pixels: least and most, `MISSING` where there is nothing,
 * and the last value; and the least and most of all.
 * @typedef {{least: Int16Array, most: Int16Array, last: Int16Array, low: number, high: number}} Envelope
 */

/** Envelopes of what was plotted last: a toggle changes none of them. @type {WeakMap<Poses, {of: string, known: Map<number, Envelope>}>} */
const kept = new WeakMap();

/** @param {Poses} poses @param {number} column @param {number} plane @param {[number, number]} range rows @param {number} width @returns {Envelope} */
function envelope(poses, column, plane, [first, end], width) {
  const of = `${first} ${end} ${width}`;
  let cache = kept.get(poses);
  if (cache?.of !== of) kept.set(poses, cache = { of, known: new Map() });
  const known = cache.known.get(3 * column + plane);
  if (known) return known;
  const values = poses.planes[column][plane];
  const [least, most, last] = [new Int16Array(width), new Int16Array(width).fill(MISSING), new Int16Array(width)];
  let [low, high] = [32767, MISSING];
  for (let x = 0; x < width && end > first; x += 1) {
    const from = first + Math.floor((x * (end - first)) / width);
    const to = Math.max(from + 1, first + Math.floor(((x + 1) * (end - first)) / width));
    let [down, up, at] = [32767, MISSING, MISSING];
    for (let row = from; row < to; row += 1) {
      const value = values[row];
      if (value === MISSING) continue;
      if (value < down) down = value;
      if (value > up) up = value;
      at = value;
    }
    [least[x], most[x], last[x]] = [down, up, at];
    if (up === MISSING) continue;
    if (down < low) low = down;
    if (up > high) high = up;
  }
  const made = { least, most, last, low, high };
  cache.known.set(3 * column + plane, made);
  return made;
}

/**
 * Draw the values of some rows, from the left to the right.
 * @param {Uint32Array} pixels @param {number} width @param {number} height @param {Envelope} values
 * @param {(stored: number) => number} level from the top, in pixels @param {number} colour
 */
function line(pixels, width, height, values, level, colour) {
  let before = NaN;
  for (let x = 0; x < width; x += 1) {
    if (values.most[x] === MISSING) {
      before = NaN;
      continue;
    }
    const [one, other] = [level(values.most[x]), level(values.least[x])];
    const reach = Number.isNaN(before) ? one : before;
    const begin = Math.max(0, Math.min(one, other, reach));
    const stop = Math.min(height - 1, Math.max(one, other, reach));
    for (let at = begin * width + x; at <= stop * width + x; at += width) pixels[at] = colour;
    before = level(values.last[x]);
  }
}
