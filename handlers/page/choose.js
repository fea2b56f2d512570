// The choice of an analysis and its arguments: for a film, for what is dropped, for a run made anew.

import { call } from "./api.js";
import { choiceNow, named, setChoice } from "./chosen.js";
import { costOf } from "./cost.js";
import { openDialog } from "./dialog.js";
import { byId, element } from "./dom.js";
import { formOf } from "./form.js";
import { keepForFolder } from "./keep.js";
import { complain, say } from "./say.js";
import { refresh } from "./stream.js";

/** @typedef {import("./chosen.js").Choice} Choice */
/** @typedef {{file_id: string, key: string, filename: string, probe: {width: number, height: number} | null}} Film */

/**
 * Models by the names that a form offers: the newest of each name by that, older ones with a digest.
 * @param {{name: string, digest: string}[]} models
 */
function modelNames(models) {
  const seen = new Set();
  return models.map(({ name, digest }) => {
    const isNewest = !seen.has(name);
    seen.add(name);
    return isNewest ? name : `${name}@${digest.slice(0, 12)}`;
  });
}

/**
 * Those that a property's pattern takes: SuperAnimals have models of their own.
 * @param {string[]} names
 * @param {string | undefined} pattern
 */
function fitting(names, pattern) {
  try {
    const test = new RegExp(pattern ?? "", "u");
    return names.filter((name) => test.test(name));
  } catch {
    return names; // a pattern of Python's that a browser can't read: the server says what fits
  }
}

/**
 * Ask which analysis, with which arguments.
 * @param {object} about
 * @param {string} about.title of the dialog
 * @param {string} about.go on the button that does it
 * @param {Film | null} about.film None: of films that are not there yet
 * @param {Choice | null} about.from what is filled in at first
 * @param {boolean} [about.mayBeNone] whether "what the folder says" is a choice
 * @param {(choice: Choice | null) => Promise<boolean | void>} about.act what the button does; what
 *   it throws is shown, each part at its field; false: the dialog stays
 */
export async function choose({ title, go, film, from, mayBeNone = false, act }) {
  const [types, models] = await Promise.all(["/analysis-types", "/models"].map((path) => call("GET", path)))
    .then((answers) => answers.map((answer) => answer.items));
  const select = element("select");
  if (mayBeNone) select.append(element("option", { value: "" }, "what the folder says"));
  select.append(...types.map((/** @type {any} */ type) => element("option", { value: type.name }, type.name)));
  const summary = element("p", { class: "small" });
  const fields = element("div");
  const left = element("ul", { class: "why" });
  const cost = element("p", { class: "small", role: "status" });
  const submit = element("button", { type: "submit", class: "go" }, go);
  const keep = element("button", { type: "button" }, "keep for this folder");
  const cancel = element("button", { type: "button" }, "cancel");
  const form = element("form", { novalidate: "" },
    element("p", {}, element("label", {}, "analysis ", select)), summary, fields, element("div", { role: "alert" }, left), cost,
    element("p", { class: "buttons" }, cancel, ...(film ? [keep] : []), submit));
  const dialog = openDialog(title, form);

  /** @type {import("./form.js").Form | null} */
  let args = null;
  const choice = () => (args === null ? null : { analysis: select.value, args: args.read() });
  const estimate = film ? costOf(film, choice, cost) : () => {};
  const fill = () => {
    const type = types.find((/** @type {any} */ each) => each.name === select.value);
    summary.textContent = type?.summary ?? "The nearest posedrop.json above each film says what is run on it.";
    keep.hidden = !type;
    left.replaceChildren();
    args = null;
    fields.replaceChildren();
    if (!type) return;
    const names = fitting(modelNames(models), type.args.properties?.model?.pattern);
    args = formOf(type.args, {
      film: film?.probe ? { file_id: film.file_id, ...film.probe } : null,
      offers: {
        model: names,
        snapshot: [...new Set(models.flatMap((/** @type {any} */ model) => model.snapshots))],
      },
    });
    fields.append(args.node);
    if (type.needs_model && names.length === 0) {
      left.append(element("li", {}, "There is no model for it yet: see Models below for how to push one."));
    }
    if (from?.analysis === type.name) {
      const unknown = args.write(from?.args ?? {});
      if (unknown.length > 0) left.append(element("li", {}, `It no longer has: ${unknown.join(", ")}`));
    }
    estimate();
  };
  const known = types.some((/** @type {any} */ type) => type.name === from?.analysis);
  const usual = models.length > 0 ? types.find((/** @type {any} */ type) => type.needs_model) : types[0];
  select.value = known ? from?.analysis : mayBeNone ? "" : usual?.name;
  select.addEventListener("change", fill);
  fields.addEventListener("input", estimate);
  fields.addEventListener("change", estimate);
  fill();
  select.focus();

  const tell = (/** @type {any} */ error) => {
    const errors = error.errors?.length > 0 ? error.errors : [{ loc: [], message: error.message }];
    const others = args === null ? errors.map((/** @type {any} */ each) => each.message) : args.show(errors);
    left.replaceChildren(...others.map((/** @type {string} */ words) => element("li", {}, words)));
  };
  const doing = (/** @type {(choice: Choice | null) => Promise<unknown>} */ work) => async () => {
    if (submit.disabled) return;
    const problems = args?.problems() ?? [];
    left.replaceChildren();
    args?.show(problems);
    if (problems.length > 0) return;
    submit.disabled = true;
    try {
      if (await work(choice()) !== false) dialog.close();
    } catch (error) {
      tell(error);
    } finally {
      submit.disabled = false;
    }
  };
  cancel.addEventListener("click", () => dialog.close());
  const run = doing(act);
  form.addEventListener("submit", (/** @type {Event} */ event) => { event.preventDefault(); run(); });
  keep.addEventListener("click", doing(async (/** @type {Choice | null} */ it) => film !== null && it !== null
    && keepForFolder(film.key, it)));
}

/**
 * Ask what to run on a film, and run it.
 * @param {Film} film as GET /files has it
 * @param {Choice | null} [from] what is filled in at first
 */
export async function analyse(film, from = choiceNow()) {
  await choose({
    title: `Analyse ${film.filename}`,
    go: "analyse",
    film,
    from,
    act: async (choice) => {
      await call("POST", "/analyse", { file_id: film.file_id, ...choice });
      say(`Asked for ${choice ? named(choice) : ""} of ${film.filename}.`);
      refresh();
    },
  });
}

/**
 * Ask what is to be another way than in a run, and run that.
 * @param {{file_id: string} & Choice} run as GET /analyses has it
 */
export async function analyseAgain(run) {
  await analyse(await call("GET", `/upload/${run.file_id}`), { analysis: run.analysis, args: run.args });
}

/** Begin the part of the page that says what is run on what is dropped. */
function start() {
  const button = byId("choose-analysis");
  button.addEventListener("click", () => {
    choose({
      title: "What is run on films that are sent from here",
      go: "use this",
      film: null,
      from: choiceNow(),
      mayBeNone: true,
      act: async (choice) => {
        setChoice(choice);
        button.textContent = choice ? named(choice) : "what the folder says";
      },
    }).catch(complain);
  });
}

start();
