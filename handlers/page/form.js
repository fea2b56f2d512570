// The form of an analysis' arguments, made of their JSON Schema: a plug-in's as well as our own.

import { element } from "./dom.js";
import { fieldFor } from "./form_fields.js";
import { resolved, same } from "./form_schema.js";

/** @typedef {import("./form_fields.js").Field} Field */
/** @typedef {import("./form_schema.js").Schema} Schema */

/**
 * @typedef {object} Form
 * @property {HTMLElement} node
 * @property {() => Record<string, any>} read the arguments that are not as they would be by default
 * @property {(args: Record<string, any>) => string[]} write returns the names that it has no field for
 * @property {(errors: {loc: (string | number)[], message: string}[]) => string[]} show what is
 *   wrong, each at its field; returns what is about none
 * @property {() => {loc: (string | number)[], message: string}[]} problems what can't even be sent
 */

/**
 * @param {Schema} schema of an object: the arguments
 * @param {{film?: {file_id: string, width: number, height: number} | null,
 *   offers?: Record<string, string[]>}} [about]
 * @returns {Form}
 */
export function formOf(schema, { film = null, offers = {} } = {}) {
  const node = element("div", { class: "form" });
  /** @type {Map<string, {field: Field, initial: string, required: boolean, details: HTMLDetailsElement | null}>} */
  const entries = new Map();
  /** @type {Map<string, HTMLDetailsElement>} */
  const groups = new Map();
  const required = new Set(schema.required ?? []);
  for (const [name, own] of Object.entries(schema.properties ?? {})) {
    const field = fieldFor(name, own, { root: schema, depth: 0, film, offers });
    const title = resolved(own, schema).group;
    let details = null;
    if (typeof title === "string" && !required.has(name)) {
      details = groups.get(title) ?? element("details", {}, element("summary", {}, title));
      if (!groups.has(title)) groups.set(title, /** @type {any} */ (details));
      details.append(field.node);
    } else {
      node.append(field.node);
    }
    entries.set(name, { field, initial: JSON.stringify(field.read()), required: required.has(name), details });
  }
  node.append(...groups.values());
  if (entries.size === 0) node.append(element("p", { class: "small" }, "It takes no arguments."));

  const isChanged = (/** @type {string} */ name) => {
    const { field, initial } = /** @type {any} */ (entries.get(name));
    return JSON.stringify(field.read()) !== initial;
  };
  return {
    node,
    read: () => Object.fromEntries([...entries]
      .filter(([name, { required: isNeeded }]) => isNeeded || isChanged(name))
      .map(([name, { field }]) => [name, field.read()])
      .filter(([, value]) => value !== undefined)),
    write: (args) => {
      const unknown = [];
      for (const [name, value] of Object.entries(args)) {
        const entry = entries.get(name);
        if (!entry) {
          unknown.push(name);
        } else if (!same(value, entry.field.read())) {
          entry.field.write(value);
          if (entry.details) entry.details.open = true;
        }
      }
      return unknown;
    },
    show: (errors) => {
      entries.forEach(({ field }) => field.clear());
      const left = [];
      for (const { loc, message } of errors) {
        const [first, ...rest] = loc[0] === "args" ? loc.slice(1) : loc;
        const entry = loc[0] === "args" && first !== undefined ? entries.get(String(first)) : undefined;
        if (!entry) {
          left.push(loc.length > 0 ? `${loc.join(".")}: ${message}` : message);
          continue;
        }
        entry.field.show(rest, message);
        if (entry.details) entry.details.open = true;
      }
      const wrong = /** @type {HTMLElement | null} */ (node.querySelector("[aria-invalid]"));
      (wrong ?? [...node.querySelectorAll(".why")].find((each) => each.textContent)
        ?.parentElement?.querySelector("input, select, textarea, button"))?.focus();
      return left;
    },
    problems: () => [...entries].flatMap(([name, { field }]) =>
      field.problems().map(({ loc, message }) => ({ loc: ["args", name, ...loc], message }))),
  };
}
