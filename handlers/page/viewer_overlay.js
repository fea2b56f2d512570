// Draws keypoints, skeletons and trails over the film.

import { colours, Poses } from "./viewer_poses.js";

/**
 * What of a run is drawn, and how.
 * @typedef {{poses: Poses, visible: boolean[], colours: [number, number, number][], other: boolean}} Layer
 * @typedef {{pcutoff: number, trail: number, skeleton: boolean}} Style
 */

/** Give all runs colours: a name has the same one in each. @param {Layer[]} layers @param {string} by what colours tell */
export function colour(layers, by) {
  const names = [...new Set(layers.flatMap(({ poses }) => (by === "animals" ? poses.individuals : poses.bodyparts)))];
  const chosen = colours(names.length);
  const known = new Map(names.map((name, number) => [name, chosen[number]]));
  for (const layer of layers) {
    layer.colours = layer.poses.columns.map((each) =>
      /** @type {[number, number, number]} */ (known.get(by === "animals" ? each.individual : each.bodypart)));
  }
}

/** Give a canvas as many pixels as the screen has there. @param {HTMLCanvasElement} canvas */
export function fit(canvas) {
  const scale = window.devicePixelRatio || 1;
  const width = Math.max(1, Math.round(canvas.clientWidth * scale));
  const height = Math.max(1, Math.round(canvas.clientHeight * scale));
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
}

/**
 * Draw the poses of a frame.
 * @param {HTMLCanvasElement} canvas over the film
 * @param {Layer[]} layers the second one, of another run, is drawn as squares
 * @param {number} frame its number in the film
 * @param {Style} style
 * @param {[number, number]} size of the pictures, in pixels of the film
 */
export function draw(canvas, layers, frame, style, size) {
  fit(canvas);
  const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  pen.clearRect(0, 0, canvas.width, canvas.height);
  const scale = [canvas.width / size[0], canvas.height / size[1]];
  const radius = Math.max(2.5, Math.hypot(canvas.width, canvas.height) / 220);
  for (const layer of layers) {
    const row = layer.poses.exactRowOf(frame);
    if (row < 0) continue;
    const place = (/** @type {number} */ column, /** @type {number} */ at) => {
      const found = layer.visible[column] ? layer.poses.at(column, at) : null;
      if (!found || found.likelihood < style.pcutoff) return null;
      return [(found.x + 0.5) * scale[0], (found.y + 0.5) * scale[1]];
    };
    if (style.trail) trails(pen, layer, row, style.trail, place, radius);
    if (style.skeleton) bones(pen, layer, row, place, radius);
    layer.poses.columns.forEach((_, column) => {
      const at = place(column, row);
      if (!at) return;
      pen.fillStyle = `rgb(${layer.colours[column].join(",")})`;
      pen.strokeStyle = layer.other ? pen.fillStyle : "rgb(0,0,0)";
      pen.lineWidth = layer.other ? radius / 2 : Math.max(1, radius / 4);
      pen.beginPath();
      if (layer.other) pen.rect(at[0] - 1.3 * radius, at[1] - 1.3 * radius, 2.6 * radius, 2.6 * radius);
      else pen.arc(at[0], at[1], radius, 0, 7);
      if (!layer.other) pen.fill();
      pen.stroke();
    });
  }
}

/**
 * @param {CanvasRenderingContext2D} pen @param {Layer} layer @param {number} row @param {number} length rows
 * @param {(column: number, row: number) => number[] | null} place @param {number} radius
 */
function trails(pen, layer, row, length, place, radius) {
  pen.lineWidth = Math.max(1, radius / 3);
  layer.poses.columns.forEach((_, column) => {
    pen.strokeStyle = `rgba(${layer.colours[column].join(",")},0.6)`;
    pen.beginPath();
    let isDown = false;
    for (let at = Math.max(0, row - length); at <= row; at += 1) {
      const found = place(column, at);
      if (found && isDown) pen.lineTo(found[0], found[1]);
      else if (found) pen.moveTo(found[0], found[1]);
      isDown = found !== null;
    }
    pen.stroke();
  });
}

/**
 * @param {CanvasRenderingContext2D} pen @param {Layer} layer @param {number} row
 * @param {(column: number, row: number) => number[] | null} place @param {number} radius
 */
function bones(pen, layer, row, place, radius) {
  pen.strokeStyle = "rgba(230,230,230,0.85)";
  pen.lineWidth = Math.max(1, radius / 2.5);
  pen.setLineDash(layer.other ? [2 * radius, radius] : []);
  pen.beginPath();
  for (const [one, other] of layer.poses.bones) {
    const a = place(one, row);
    const b = a && place(other, row);
    if (!a || !b) continue;
    pen.moveTo(a[0], a[1]);
    pen.lineTo(b[0], b[1]);
  }
  pen.stroke();
  pen.setLineDash([]);
}
