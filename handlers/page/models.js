// The models: what each finds, how much it is used, and how another one is pushed.

import { call } from "./api.js";
import { byId, element, when } from "./dom.js";
import { complain, say } from "./say.js";

/**
 * @typedef {object} Model
 * @property {string} name
 * @property {string} digest
 * @property {string} kind
 * @property {string[]} bodyparts
 * @property {string[]} individuals
 * @property {[string, string][]} skeleton
 * @property {boolean} multianimal
 * @property {string} net_type
 * @property {string[]} snapshots
 * @property {string} created_at
 * @property {number} runs
 * @property {string | null} last_used
 */

/** So many names are shown at once; a click shows the others. */
const SHOWN = 12;

/**
 * @param {string} title
 * @param {string[]} names
 */
function named(title, names) {
  const text = names.join(", ") || "none";
  const line = names.length > SHOWN
    ? element("details", {}, element("summary", {}, `${names.slice(0, SHOWN).join(", ")} and ${names.length - SHOWN} more`), text)
    : text;
  return [element("dt", {}, title), element("dd", {}, line)];
}

/** @param {Model} model */
const used = ({ runs, last_used: last }) =>
  (runs === 0 ? "by no run yet" : `by ${runs} ${runs === 1 ? "run" : "runs"}${last ? `, the last ${when(last)}` : ""}`);

/**
 * @param {Model} model
 * @param {boolean} isNewest of its name
 */
function card(model, isNewest) {
  const animals = model.multianimal ? model.individuals : [];
  return element("article", { class: "card" },
    element("h3", {}, model.name),
    element("p", { class: "small" }, isNewest ? `asked for as ${model.name}`
      : `an older one: asked for as ${model.name}@${model.digest.slice(0, 12)}`),
    element("dl", {},
      ...named("bodyparts", model.bodyparts),
      ...named("skeleton", model.skeleton.map((pair) => pair.join("–"))),
      ...named("animals", model.multianimal ? animals : ["one"]),
      element("dt", {}, "used"), element("dd", {}, used(model)),
      element("dt", {}, "network"), element("dd", {}, `${model.net_type || model.kind}, ${model.snapshots.join(", ")}`),
      element("dt", {}, "digest"), element("dd", { title: model.digest }, model.digest.slice(0, 12)),
      element("dt", {}, "pushed"), element("dd", {}, when(model.created_at))));
}

/** The line that pushes a model, to be copied. */
function push() {
  const line = element("input", {
    type: "text", readonly: "", "aria-label": "command that pushes a model",
    value: "posedrop models push PATH/TO/DLC-PROJECT --name NAME",
  });
  const copy = element("button", {
    type: "button",
    onclick: async () => {
      line.select();
      try {
        await navigator.clipboard.writeText(line.value);
        say("The command is copied.");
      } catch {
        say("Press Ctrl+C to copy the command."); // plain http: a browser lends no clipboard there
      }
    },
  }, "copy");
  return element("div", { class: "push" },
    element("p", { class: "small" }, "A trained DeepLabCut 3 project is pushed by the command line:"), line, copy);
}

/** Begin: show the models that there are, and how to push one. */
async function start() {
  try {
    const models = /** @type {Model[]} */ ((await call("GET", "/models")).items);
    const seen = new Set();
    const cards = models.map((model) => {
      const isNewest = !seen.has(model.name);
      seen.add(model.name);
      return card(model, isNewest);
    });
    const none = element("p", { class: "empty" }, "No models yet: push one, then films can be analysed with it.");
    byId("models").replaceChildren(...(cards.length > 0 ? [element("div", { class: "cards" }, ...cards)] : [none]), push());
  } catch (error) {
    complain(error);
  }
}

start();
