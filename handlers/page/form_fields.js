// Fields of a form, one for each kind of property: shown, filled in, read, and told what is wrong.

import { cropOn } from "./crop.js";
import { element } from "./dom.js";
import { boundsOf, kindOf, numberOf, resolved, same, withoutNull } from "./form_schema.js";

/** @typedef {import("./form_schema.js").Schema} Schema */
/** @typedef {(string | number)[]} Loc */
/**
 * @typedef {object} Field
 * @property {HTMLElement} node
 * @property {() => any} read its value; undefined: there is none, and the server has to complete it
 * @property {(value: any) => void} write
 * @property {(loc: Loc, message: string) => void} show what is wrong, at the part that it is about
 * @property {() => void} clear takes off what was shown
 * @property {() => {loc: Loc, message: string}[]} problems what can't even be sent
 */
/**
 * @typedef {object} Surroundings
 * @property {Schema} root has the `$defs`
 * @property {number} depth
 * @property {{file_id: string, width: number, height: number} | null} film that the form is about
 * @property {Record<string, string[]>} offers values to choose from, by a property's name
 */

let made = 0;

/**
 * A label, a hint and a place for what is wrong, around a control.
 * @param {string} name
 * @param {Schema} schema
 * @param {HTMLElement} control
 * @param {string} [unset] how it is when it is left alone
 */
function framed(name, schema, control, unset = "") {
  const id = `field-${++made}`;
  const wrong = element("span", { class: "why", id: `${id}-why` });
  const about = schema.description?.replace(/\.$/, "");
  const words = [about, schema.enum ? "" : boundsOf(schema), unset].filter(Boolean).join("; ");
  const hint = element("span", { class: "small", id: `${id}-hint` }, words);
  control.id = id;
  control.setAttribute("aria-describedby", `${id}-why ${id}-hint`);
  const label = element("label", { for: id }, name);
  const isCheckbox = control.getAttribute("type") === "checkbox";
  const node = element("div", { class: "field" }, ...(isCheckbox ? [control, label] : [label, control]), wrong, hint);
  return {
    node,
    /** @param {Loc} _ @param {string} message */
    show: (_, message) => {
      wrong.textContent = message;
      control.setAttribute("aria-invalid", "true");
    },
    clear: () => {
      wrong.textContent = "";
      control.removeAttribute("aria-invalid");
    },
    problems: () => /** @type {{loc: Loc, message: string}[]} */ ([]),
  };
}

/** @param {Schema} schema */
const defaultOf = (schema) => {
  if (schema.default === undefined) return "";
  if (schema.default === null) return "empty: null";
  return `default ${typeof schema.default === "string" ? schema.default || "empty" : JSON.stringify(schema.default)}`;
};

/**
 * @param {string} name @param {Schema} schema @param {boolean} nullable
 * @returns {Field}
 */
function choice(name, schema, nullable) {
  const values = "const" in schema ? [schema.const] : [...schema.enum];
  if (nullable && !values.includes(null)) values.unshift(null);
  const select = element("select");
  const labelled = (/** @type {any} */ value) => (value === null ? "not set" : String(value));
  if (schema.default === undefined && !nullable) select.append(element("option", { value: "" }, "choose"));
  values.forEach((value, i) => select.append(element("option", { value: String(i) }, labelled(value))));
  const write = (/** @type {any} */ value) => {
    const i = values.findIndex((each) => same(each, value));
    if (i >= 0) select.value = String(i);
  };
  if (schema.default !== undefined) write(schema.default);
  return {
    ...framed(name, schema, select, defaultOf(schema).replace("empty: null", "")),
    read: () => (select.value === "" ? undefined : values[Number(select.value)]),
    write,
  };
}

/**
 * @param {string} name @param {Schema} schema
 * @returns {Field}
 */
function flag(name, schema) {
  const box = element("input", { type: "checkbox" });
  box.checked = schema.default === true;
  return {
    ...framed(name, schema, box),
    read: () => box.checked,
    write: (value) => { box.checked = value === true; },
  };
}

/**
 * A number or a text, on one line.
 * @param {string} name @param {Schema} schema @param {boolean} nullable @param {string[]} offers
 * @returns {Field}
 */
function line(name, schema, nullable, offers) {
  const isNumber = schema.type !== "string";
  const input = element("input", { type: "text", autocomplete: "off", spellcheck: "false" });
  if (isNumber) input.setAttribute("inputmode", schema.type === "integer" ? "numeric" : "decimal");
  const frame = framed(name, schema, input, defaultOf(schema));
  if (offers.length > 0) {
    const list = element("datalist", { id: `${input.id}-list` });
    list.append(...offers.map((each) => element("option", { value: each })));
    input.setAttribute("list", list.id);
    frame.node.append(list);
  }
  const write = (/** @type {any} */ value) => {
    input.value = value === null || value === undefined ? "" : String(value);
  };
  write(schema.default);
  return {
    ...frame,
    read: () => {
      if (isNumber) return numberOf(input.value) ?? (nullable ? null : undefined);
      if (input.value !== "") return input.value;
      if (nullable) return null;
      return schema.default === undefined ? undefined : "";
    },
    write,
  };
}

/**
 * A text that has to be one of some, where what there is to choose from is not in the schema.
 * @param {string} name @param {Schema} schema @param {boolean} nullable @param {string[]} offers
 * @returns {Field}
 */
function offered(name, schema, nullable, offers) {
  const select = element("select");
  if (nullable || schema.default === undefined) {
    select.append(element("option", { value: "" }, nullable ? "not set" : "choose"));
  }
  const write = (/** @type {any} */ value) => {
    if (value && ![...select.options].some((/** @type {HTMLOptionElement} */ each) => each.value === value)) {
      select.append(element("option", { value }, value)); // of before; the server says if it is gone
    }
    select.value = value ?? "";
  };
  select.append(...offers.map((each) => element("option", { value: each }, each)));
  write(schema.default);
  return {
    ...framed(name, schema, select),
    read: () => select.value || (nullable ? null : undefined),
    write,
  };
}

/**
 * Whatever there is no field for, as JSON.
 * @param {string} name @param {Schema} schema @param {boolean} nullable
 * @returns {Field}
 */
function json(name, schema, nullable) {
  const area = element("textarea", { rows: "3", spellcheck: "false" });
  const write = (/** @type {any} */ value) => {
    area.value = value === undefined || (value === null && nullable) ? "" : JSON.stringify(value, null, 1);
  };
  write(schema.default);
  const empty = nullable ? null : undefined;
  const parsed = () => (area.value.trim() === "" ? empty : JSON.parse(area.value));
  const frame = framed(name, schema, area, "as JSON, such as 5, \"text\" or [1, 2]");
  return {
    ...frame,
    show: (loc, message) => frame.show([], loc.length > 0 ? `${loc.join(".")}: ${message}` : message),
    read: () => { try { return parsed(); } catch { return area.value; } },
    write,
    problems: () => {
      try {
        parsed();
        return [];
      } catch (error) {
        return [{ loc: [], message: `this is not JSON: ${/** @type {Error} */ (error).message}` }];
      }
    },
  };
}

/**
 * A frame for fields that belong together, which may be null as a whole.
 * @param {string} name @param {Schema} schema @param {boolean} nullable
 * @param {HTMLElement} inside
 */
function fieldset(name, schema, nullable, inside) {
  const id = `field-${++made}`;
  const wrong = element("p", { class: "why", id: `${id}-why` });
  const about = schema.description?.replace(/\.$/, "");
  const words = [about, schema.prefixItems ? "" : boundsOf(schema)].filter(Boolean).join("; ");
  const hint = element("p", { class: "small", id: `${id}-hint` }, words);
  const box = element("input", { type: "checkbox" });
  box.checked = !nullable || (schema.default !== undefined && schema.default !== null);
  const legend = nullable ? element("legend", {}, element("label", {}, box, ` ${name}`)) : element("legend", {}, name);
  const node = element("fieldset", { "aria-describedby": `${id}-why ${id}-hint` }, legend, hint, wrong, inside);
  const follow = () => { inside.hidden = !box.checked; };
  box.addEventListener("change", follow);
  follow();
  return {
    node,
    box,
    isOn: () => box.checked,
    /** @param {boolean} on */
    turn: (on) => { box.checked = on || !nullable; follow(); },
    /** @param {string} message */
    say: (message) => { wrong.textContent = message; },
  };
}

/**
 * @param {string | number} name @param {Field} field
 */
const prefixed = (name, field) => field.problems().map(({ loc, message }) => ({ loc: [name, ...loc], message }));

/**
 * @param {string} name @param {Schema} schema @param {boolean} nullable @param {Surroundings} around
 * @returns {Field}
 */
function group(name, schema, nullable, around) {
  const names = Object.keys(schema.properties);
  const preset = typeof schema.default === "object" && schema.default !== null ? schema.default : {};
  /** @type {Map<string, Field>} */
  const fields = new Map();
  const inside = element("div");
  const frame = fieldset(name, schema, nullable, inside);
  // Once they are wanted: what may be null may contain itself.
  const build = () => {
    if (!frame.isOn() || fields.size > 0) return;
    for (const each of names) {
      const own = resolved(schema.properties[each], around.root);
      const inner = Object.hasOwn(preset, each) ? { ...own, default: preset[each] } : own;
      fields.set(each, fieldFor(each, inner, { ...around, depth: around.depth + 1 }));
    }
    inside.append(...[...fields.values()].map((field) => field.node));
    if (around.film !== null && names.length === 4 && ["x1", "x2", "y1", "y2"].every((each) => fields.has(each))) {
      inside.prepend(cropOn(around.film, /** @type {any} */ (Object.fromEntries(fields)), inside));
    }
  };
  build();
  frame.box.addEventListener("change", build);
  const write = (/** @type {any} */ value) => {
    frame.turn(value !== null && value !== undefined);
    build();
    for (const [each, field] of fields) {
      if (Object.hasOwn(value ?? {}, each)) field.write(value[each]);
    }
  };
  return {
    node: frame.node,
    read: () => {
      if (!frame.isOn()) return null;
      const pairs = [...fields].map(([each, field]) => [each, field.read()]);
      return Object.fromEntries(pairs.filter(([, value]) => value !== undefined));
    },
    write,
    show: ([first, ...rest], message) => {
      const field = fields.get(String(first));
      if (field) field.show(rest, message);
      else frame.say(first === undefined ? message : `${first}: ${message}`);
    },
    clear: () => {
      frame.say("");
      fields.forEach((field) => field.clear());
    },
    problems: () => (frame.isOn() ? [...fields].flatMap(([each, field]) => prefixed(each, field)) : []),
  };
}

/**
 * As many values as are wanted, or (a tuple) as there have to be.
 * @param {string} name @param {Schema} schema @param {boolean} nullable @param {Surroundings} around
 * @returns {Field}
 */
function list(name, schema, nullable, around) {
  const fixed = schema.prefixItems ?? null;
  /** @type {{field: Field, row: HTMLElement}[]} */
  let items = [];
  const rows = element("div");
  const inside = element("div", {}, rows);
  const frame = fieldset(name, schema, nullable, inside);
  const append = (/** @type {any} */ value, /** @type {boolean} */ isGiven) => {
    const own = resolved(fixed?.[items.length] ?? schema.items, around.root);
    const field = fieldFor(`${name} ${items.length + 1}`, own, { ...around, depth: around.depth + 1 });
    if (isGiven) field.write(value);
    const row = element("div", { class: "item" }, field.node);
    const item = { field, row };
    if (!fixed) {
      row.append(element("button", {
        type: "button",
        onclick: () => {
          const after = items.slice(items.indexOf(item) + 1);
          items = items.filter((each) => each !== item);
          row.remove();
          (after[0]?.row.querySelector("button") ?? more).focus();
          inside.dispatchEvent(new Event("change", { bubbles: true }));
        },
      }, "remove"));
    }
    items.push(item);
    rows.append(row);
    return field;
  };
  const more = element("button", {
    type: "button",
    onclick: () => {
      /** @type {HTMLElement | null} */
      (append(undefined, false).node.querySelector("input, select, textarea, button"))?.focus();
      inside.dispatchEvent(new Event("change", { bubbles: true }));
    },
  }, `add to ${name}`);
  if (!fixed) inside.append(more);
  const write = (/** @type {any} */ value) => {
    frame.turn(value !== null && value !== undefined);
    const values = Array.isArray(value) ? value : [];
    items = [];
    rows.replaceChildren();
    const count = fixed ? fixed.length : values.length;
    for (let i = 0; i < count; i++) append(values[i], i < values.length);
  };
  write(schema.default);
  return {
    node: frame.node,
    read: () => {
      if (!frame.isOn()) return null;
      const values = items.map(({ field }) => field.read());
      if (fixed && values.every((value) => value === undefined)) return undefined;
      return values.map((value) => (value === undefined ? null : value));
    },
    write,
    show: ([first, ...rest], message) => {
      const item = items[Number(first)];
      if (first !== undefined && item) item.field.show(rest, message);
      else frame.say(message);
    },
    clear: () => {
      frame.say("");
      items.forEach(({ field }) => field.clear());
    },
    problems: () => (frame.isOn() ? items.flatMap(({ field }, i) => prefixed(i, field)) : []),
  };
}

/**
 * Return the field of a property.
 * @param {string} name
 * @param {Schema} given its schema
 * @param {Surroundings} around
 * @returns {Field}
 */
export function fieldFor(name, given, around) {
  const { schema, nullable } = withoutNull(resolved(given, around.root), around.root);
  const offers = Object.hasOwn(around.offers, name) ? around.offers[name] : [];
  switch (kindOf(schema, around.depth)) {
    case "choice": return choice(name, schema, nullable);
    case "flag": return nullable ? choice(name, { ...schema, enum: [true, false] }, true) : flag(name, schema);
    case "number": return line(name, schema, nullable, []);
    case "text": return name === "model" && around.depth === 0
      ? offered(name, schema, nullable, offers) : line(name, schema, nullable, offers);
    case "group": return group(name, schema, nullable, around);
    case "list": case "tuple": return list(name, schema, nullable, around);
    default: return json(name, schema, nullable);
  }
}
