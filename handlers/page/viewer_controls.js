// The controls of a run's page: keys, buttons, toggles, time line, plots, and the address.

import { byId, element } from "./dom.js";
import { colour } from "./viewer_overlay.js";
import { worst } from "./viewer_worst.js";

/** @typedef {import("./viewer.js").State} State */

const SPEEDS = [0.1, 0.25, 0.5, 1, 2, 4, 8];
const ADDRESS_MS = 300;

const input = (/** @type {string} */ id) => /** @type {HTMLInputElement} */ (byId(id));

/** @param {State} state @param {any} quality of result.json, or null */
export function wire(state, quality) {
  const { film, poses, layers } = state;
  /** @type {import("./viewer_worst.js").Worst[]} */ let bad = [];
  /** @type {number | undefined} */ let addressed;
  const last = poses.rows - 1;
  const go = (/** @type {number} */ row) => {
    if (film.playing) film.pause();
    film.seek(row);
  };
  const step = (/** @type {number} */ rows) => go(film.goal + rows);

  // -- what is shown -------------------------------------------------------------------------------

  state.onShown = (row) => {
    const frame = poses.frames[row];
    if (document.activeElement !== input("frame")) input("frame").value = String(frame);
    input("scrub").value = String(row);
    input("scrub").setAttribute("aria-valuetext", `frame ${frame}`);
    const lost = poses.decoded[row] ? "" : ", can't be read: the picture is of another frame";
    byId("time").textContent = `of ${poses.frames[last]}, ${poses.seconds[row].toFixed(3)} s${lost}`;
    byId("viewer").dataset.frame = String(frame);
    moveCursors();
    addressed ??= window.setTimeout(() => {
      addressed = undefined;
      // For who hears the page: where it has come to rest.
      if (!film.playing) byId("here").textContent = `frame ${poses.frames[film.row]}${poses.decoded[film.row] ? "" : ", which can't be read"}`;
      history.replaceState(null, "", `#frame=${poses.frames[film.goal]}`);
    }, ADDRESS_MS);
  };
  state.onChanged = () => {
    byId("play").textContent = film.playing ? "pause" : "play";
  };

  function moveCursors() {
    const [from, to] = state.range;
    if (film.row < from || film.row >= to) {
      const shift = film.row < from ? film.row - from : film.row - to + 1;
      zoomTo(from + shift + Math.sign(shift) * Math.floor((to - from) / 2), to - from);
      return;
    }
    for (const cursor of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll(".cursor"))) {
      const width = /** @type {HTMLElement} */ (cursor.parentElement).clientWidth;
      cursor.style.transform = `translateX(${((film.row - from + 0.5) / (to - from)) * width}px)`;
    }
  }

  // -- the plots -----------------------------------------------------------------------------------

  /** @param {number} from row @param {number} count rows */
  function zoomTo(from, count) {
    const rows = Math.max(Math.min(10, poses.rows), Math.min(poses.rows, Math.round(count)));
    const first = Math.max(0, Math.min(poses.rows - rows, Math.round(from)));
    state.range = [first, first + rows];
    byId("range").textContent = `frames ${poses.frames[first]} to ${poses.frames[first + rows - 1]}`;
    state.plot();
    moveCursors();
  }
  /** @param {number} factor @param {number} [at] row that stays where it is */
  function zoom(factor, at = film.row) {
    const [from, to] = state.range;
    zoomTo(at - (at - from) * factor, (to - from) * factor);
  }
  byId("in").onclick = () => zoom(0.5);
  byId("out").onclick = () => zoom(2);
  byId("all").onclick = () => zoomTo(0, poses.rows);
  for (const box of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll(".plot"))) {
    const rowAt = (/** @type {MouseEvent} */ event) => {
      const { left, width } = box.getBoundingClientRect();
      const [from, to] = state.range;
      return Math.max(0, Math.min(last, Math.floor(from + ((event.clientX - left) / width) * (to - from))));
    };
    /** @type {number | null} */ let began = null;
    box.onpointerdown = (event) => { began = rowAt(event); };
    box.onpointerup = (event) => {
      const end = rowAt(event);
      if (began !== null && Math.abs(end - began) > (state.range[1] - state.range[0]) / 50) {
        zoomTo(Math.min(began, end), Math.abs(end - began));
      } else go(end);
      began = null;
    };
    box.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.shiftKey) return;
      event.preventDefault();
      zoom((event.deltaY || event.deltaX) > 0 ? 1.25 : 0.8, rowAt(event));
    }, { passive: false });
  }

  // -- toggles -------------------------------------------------------------------------------------

  /** @type {Record<string, Set<string>>} */ const off = { bodypart: new Set(), individual: new Set() };
  function retoggle() {
    for (const layer of layers) {
      layer.visible = layer.poses.columns.map((each) =>
        !off.bodypart.has(each.bodypart) && !off.individual.has(each.individual));
    }
    state.draw();
    state.plot();
  }
  /** @param {string} box @param {"bodypart" | "individual"} kind @param {string[]} names */
  function toggles(box, kind, names) {
    const boxes = names.map((name) => {
      const check = /** @type {HTMLInputElement} */ (element("input", { type: "checkbox", checked: "" }));
      check.onchange = () => {
        if (check.checked) off[kind].delete(name);
        else off[kind].add(name);
        retoggle();
      };
      const swatch = element("span", { class: "swatch" });
      swatch.dataset[kind] = name;
      return { name, check, label: element("label", {}, check, " ", swatch, element("bdi", {}, name || "no name")) };
    });
    const whole = element("button", {
      onclick: () => {
        const wanted = off[kind].size > 0;
        for (const { name, check } of boxes) {
          check.checked = wanted;
          if (wanted) off[kind].delete(name);
          else off[kind].add(name);
        }
        retoggle();
      },
    }, "all or none");
    byId(box).append(whole, ...boxes.map((each) => each.label));
  }
  function recolour() {
    colour(layers, /** @type {HTMLSelectElement} */ (byId("colour")).value);
    const by = /** @type {HTMLSelectElement} */ (byId("colour")).value === "animals" ? "individual" : "bodypart";
    const known = new Map(layers.flatMap((layer) => layer.poses.columns.map((each, column) => [each[by], layer.colours[column]])));
    for (const swatch of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll(".swatch"))) {
      const name = swatch.dataset[by];
      const found = name === undefined ? undefined : known.get(name);
      swatch.style.background = found ? `rgb(${found.join(",")})` : "none";
    }
  }
  toggles("parts", "bodypart", [...new Set(layers.flatMap((layer) => layer.poses.bodyparts))]);
  if (poses.individuals.length > 1) {
    toggles("animals", "individual", [...new Set(layers.flatMap((layer) => layer.poses.individuals))]);
    byId("animals").hidden = byId("by").hidden = false;
    /** @type {HTMLSelectElement} */ (byId("colour")).value = "animals";
  }
  byId("colour").onchange = () => { recolour(); retoggle(); };
  recolour();
  input("pcutoff").value = String(poses.pcutoff);
  const restyle = () => {
    state.style = { pcutoff: Number(input("pcutoff").value), trail: Number(input("trail").value), skeleton: input("skeleton").checked };
    byId("pcutoff-said").textContent = state.style.pcutoff.toFixed(2);
    byId("trail-said").textContent = `${state.style.trail} frames`;
    state.draw();
    state.plot();
  };
  for (const name of ["pcutoff", "trail", "skeleton"]) input(name).oninput = restyle;

  // -- buttons, keys, address ----------------------------------------------------------------------

  const speeds = /** @type {HTMLSelectElement} */ (byId("speed"));
  speeds.append(...SPEEDS.map((each) => element("option", { value: String(each) }, `${each}×`)));
  speeds.value = "1";
  const setSpeed = () => film.setSpeed(Number(speeds.value));
  speeds.onchange = setSpeed;
  const faster = (/** @type {number} */ by) => {
    speeds.selectedIndex = Math.max(0, Math.min(SPEEDS.length - 1, speeds.selectedIndex + by));
    setSpeed();
  };
  const worse = (/** @type {number} */ way) => {
    const rows = bad.map((each) => each.row).filter((row) => (way > 0 ? row > film.goal : row < film.goal));
    if (rows.length) go(way > 0 ? rows[0] : rows[rows.length - 1]);
  };
  const full = () => (document.fullscreenElement ? document.exitFullscreen() : byId("player").requestFullscreen?.());
  byId("back").onclick = () => step(-1);
  byId("forth").onclick = () => step(1);
  byId("play").onclick = () => film.toggle();
  byId("worse-before").onclick = () => worse(-1);
  byId("worse-behind").onclick = () => worse(1);
  byId("full").onclick = full;
  input("scrub").max = String(last);
  input("scrub").oninput = () => go(Number(input("scrub").value));
  Object.assign(input("frame"), { min: String(poses.frames[0]), max: String(poses.frames[last]) });
  input("frame").onchange = () => go(poses.rowOf(Number(input("frame").value) || 0));
  /** @type {Record<string, () => void>} */
  const keys = {
    ArrowLeft: () => step(-1), ArrowRight: () => step(1), "shift ArrowLeft": () => step(-10), "shift ArrowRight": () => step(10),
    ",": () => step(-1), ".": () => step(1), Home: () => go(0), End: () => go(last), " ": () => film.toggle(),
    n: () => worse(1), p: () => worse(-1), "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2),
    0: () => zoomTo(0, poses.rows), f: full, "[": () => faster(-1), "]": () => faster(1),
  };
  document.onkeydown = (event) => {
    const target = /** @type {HTMLElement} */ (event.target);
    if (event.ctrlKey || event.altKey || event.metaKey || target.matches("select, input[type=number]")) return;
    // What a slider does by itself; on the time line the keys go further.
    if (target.matches("input[type=range]:not(#scrub)") && /^(Arrow|Home|End|Page)/.test(event.key)) return;
    if (event.key === " " && target.matches("button, input[type=checkbox], a, summary")) return;
    const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const act = keys[event.shiftKey && name.startsWith("Arrow") ? `shift ${name}` : name];
    if (!act) return;
    event.preventDefault();
    act();
  };
  const rowIn = (/** @type {string} */ address) => {
    const frame = /#frame=(\d+)/.exec(address)?.[1];
    return frame === undefined ? 0 : poses.rowOf(Number(frame));
  };
  // By the event's own address: the one shown may have been written over since.
  window.onhashchange = (event) => go(rowIn(event.newURL));
  window.addEventListener("resize", () => {
    state.draw();
    state.plot();
    moveCursors();
    mark();
  });

  // -- frames to look at ---------------------------------------------------------------------------

  function mark() {
    const canvas = /** @type {HTMLCanvasElement} */ (byId("marks"));
    Object.assign(canvas, { width: canvas.clientWidth, height: canvas.clientHeight });
    const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    pen.fillStyle = "#d0452b";
    // The knob of the range below stays within it.
    for (const { row } of bad) pen.fillRect(8 + (row / Math.max(1, last)) * (canvas.width - 16) - 1, 0, 3, canvas.height);
  }
  byId("marks").onclick = (event) => {
    const share = (event.offsetX - 8) / (byId("marks").clientWidth - 16);
    const rows = bad.map((each) => each.row);
    if (rows.length) go(rows.reduce((a, b) => (Math.abs(b - share * last) < Math.abs(a - share * last) ? b : a)));
  };
  setTimeout(() => { // the film and the plots come first
    bad = worst(poses, quality);
    byId("bad").hidden = !bad.length;
    byId("worst").append(...bad.map(({ row, words }) =>
      element("li", {}, element("button", { onclick: () => go(row) }, `frame ${poses.frames[row]}: ${words}`))));
    mark();
  }, 500);

  restyle();
  zoomTo(0, poses.rows);
  film.seek(rowIn(location.href));
}
