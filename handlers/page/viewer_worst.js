// Finds the frames of a run that are worth a look: by the run's quality, and by its poses.

import { Poses, within } from "./viewer_poses.js";

const MOST = 12;
const FEWEST_PIXELS = 8;

/** @typedef {{row: number, words: string}} Worst */

/**
 * The worst frames, in the order of the film.
 * @param {Poses} poses @param {any} quality of result.json, or null
 * @returns {Worst[]}
 */
export function worst(poses, quality) {
  /** @type {Worst[]} */ const found = [];
  for (const [name, words] of [["missing", "frames could not be read"], ["black", "frames are black"], ["frozen", "the picture stands still"]]) {
    const stretch = quality?.[name];
    if (stretch?.frames && stretch.first_frame !== null) found.push({ row: poses.rowOf(stretch.first_frame), words });
  }
  const apart = Math.max(5, Math.floor(poses.rows / 200));
  for (const { row, score, words } of [...pick(unsure(poses), apart), ...pick(jumps(poses), apart)]) {
    if (score > 0) found.push({ row, words });
  }
  return found.sort((a, b) => a.row - b.row);
}

/** @typedef {{row: number, score: number, words: string}} Scored */

/** The best scored, none near another one. @param {{score: Float32Array, words: (row: number) => string}} of @param {number} apart rows @returns {Scored[]} */
function pick({ score, words }, apart) {
  const left = score.slice();
  const found = [];
  for (let number = 0; number < MOST; number += 1) {
    let row = -1;
    for (let each = 0; each < left.length; each += 1) if (left[each] > (row < 0 ? 0 : left[row])) row = each;
    if (row < 0) break;
    found.push({ row, score: score[row], words: words(row) });
    left.fill(0, Math.max(0, row - apart), row + apart + 1);
  }
  return found;
}

/** Rows by how little the network was sure of them. @param {Poses} poses */
function unsure(poses) {
  const score = new Float32Array(poses.rows);
  const count = new Uint16Array(poses.rows);
  for (const [, , likelihood] of poses.planes) {
    for (let row = 0; row < poses.rows; row += 1) {
      if (likelihood[row] === -32768) continue;
      score[row] += likelihood[row] / 32767;
      count[row] += 1;
    }
  }
  for (let row = 0; row < poses.rows; row += 1) {
    score[row] = count[row] ? Math.max(0, poses.pcutoff - score[row] / count[row]) : 0;
  }
  const words = (/** @type {number} */ row) => `likelihood ${(poses.pcutoff - score[row]).toFixed(2)} on average`;
  return { score, words };
}

/** Rows by how far a bodypart of which the network is sure has gone since the row before. @param {Poses} poses */
function jumps(poses) {
  const score = new Float32Array(poses.rows);
  const who = new Uint16Array(poses.rows);
  const least = poses.pcutoff * 32767;
  poses.planes.forEach(([x, y, likelihood], column) => {
    let sum = 0;
    let count = 0;
    const way = new Float32Array(poses.rows);
    for (let row = 1; row < poses.rows; row += 1) {
      if (likelihood[row] < least || likelihood[row - 1] < least) continue;
      way[row] = poses.step * Math.hypot(x[row] - x[row - 1], y[row] - y[row - 1]);
      sum += way[row];
      count += 1;
    }
    const usual = Math.max(FEWEST_PIXELS, (5 * sum) / Math.max(1, count));
    for (let row = 1; row < poses.rows; row += 1) {
      if (way[row] > usual && way[row] > score[row]) [score[row], who[row]] = [way[row], column];
    }
  });
  const words = (/** @type {number} */ row) => `${within(poses.columns[who[row]].bodypart)} jumps by ${score[row].toFixed(0)} pixels`;
  return { score, words };
}
