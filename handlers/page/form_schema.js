// What a JSON Schema says of one property, in the few shapes that a form has fields for. Pure.

/** @typedef {Record<string, any>} Schema */

/** Deeper than this a schema is asked for as JSON: it may contain itself. */
export const MAX_DEPTH = 12;

/**
 * Follow `$ref` and a lone `allOf`; what stands beside them (description, default) counts.
 * @param {Schema} schema
 * @param {Schema} root has the `$defs`
 * @returns {Schema}
 */
export function resolved(schema, root) {
  let found = typeof schema === "object" && schema !== null ? schema : {}; // true: anything at all
  for (let step = 0; step < 20; step++) {
    const { $ref, allOf, ...beside } = found;
    if (typeof $ref === "string" && $ref.startsWith("#/")) {
      let target = root;
      for (const part of $ref.slice(2).split("/")) {
        target = target?.[part.replaceAll("~1", "/").replaceAll("~0", "~")];
      }
      if (typeof target !== "object" || target === null) return beside;
      found = { ...target, ...beside };
    } else if (Array.isArray(allOf) && allOf.length === 1) {
      found = { ...allOf[0], ...beside };
    } else {
      return found;
    }
  }
  return {};
}

/**
 * Part "this, or null" into this, and whether it may be null.
 * @param {Schema} schema resolved
 * @param {Schema} root
 * @returns {{schema: Schema, nullable: boolean}}
 */
export function withoutNull(schema, root) {
  const choices = schema.anyOf ?? schema.oneOf;
  if (Array.isArray(choices)) {
    const left = choices.map((each) => resolved(each, root)).filter((each) => each.type !== "null");
    if (left.length < choices.length) {
      const { anyOf, oneOf, ...beside } = schema;
      const { default: _, ...only } = left.length === 1 ? left[0] : { anyOf: left };
      return { schema: { ...only, ...beside }, nullable: true };
    }
  }
  if (Array.isArray(schema.type) && schema.type.includes("null")) {
    const types = schema.type.filter((/** @type {string} */ type) => type !== "null");
    return { schema: { ...schema, type: types.length === 1 ? types[0] : types }, nullable: true };
  }
  return { schema, nullable: false };
}

/**
 * Name the kind of field that a schema without null is asked by.
 * @param {Schema} schema
 * @param {number} depth of this property below the whole
 * @returns {"choice" | "flag" | "number" | "text" | "group" | "list" | "tuple" | "json"}
 */
export function kindOf(schema, depth) {
  if (Array.isArray(schema.enum) || "const" in schema) return "choice";
  if (schema.type === "boolean") return "flag";
  if (schema.type === "integer" || schema.type === "number") return "number";
  if (schema.type === "string") return "text";
  if (depth >= MAX_DEPTH) return "json";
  if (schema.type === "object" && Object.keys(schema.properties ?? {}).length > 0) return "group";
  if (schema.type === "array") {
    if (Array.isArray(schema.prefixItems) && schema.items === undefined) return "tuple";
    if (typeof schema.items === "object" && !schema.prefixItems) return "list";
  }
  return "json";
}

/**
 * Say which values a property takes, and what it is when it is left alone.
 * @param {Schema} schema
 * @returns {string}
 */
export function boundsOf(schema) {
  const low = schema.minimum ?? schema.exclusiveMinimum;
  const high = schema.maximum ?? schema.exclusiveMaximum;
  const said = [];
  if (schema.type === "integer") said.push("a whole number");
  if (low !== undefined) said.push(schema.minimum === undefined ? `more than ${low}` : `${low} or more`);
  if (high !== undefined) said.push(schema.maximum === undefined ? `less than ${high}` : `at most ${high}`);
  if (schema.multipleOf !== undefined) said.push(`in steps of ${schema.multipleOf}`);
  if (schema.minLength > 1) said.push(`${schema.minLength} characters or more`);
  if (schema.maxLength !== undefined) said.push(`at most ${schema.maxLength} characters`);
  if (schema.minItems) said.push(`${schema.minItems} or more`);
  if (schema.maxItems !== undefined && schema.type === "array") said.push(`at most ${schema.maxItems}`);
  if (schema.format) said.push(schema.format);
  return said.join(", ");
}

/**
 * @param {unknown} one
 * @param {unknown} other
 */
export const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;

/**
 * Read a number as it was typed. What is none, or too large to be kept exactly, stays as it was
 * typed: the server says what is wrong with it, at its field.
 * @param {string} text
 * @returns {number | string | undefined} undefined: nothing was typed
 */
export function numberOf(text) {
  const typed = text.trim();
  if (typed === "") return undefined;
  const value = Number(typed);
  if (!NUMBER.test(typed) || !Number.isFinite(value)) return typed;
  return Number.isInteger(value) && !Number.isSafeInteger(value) ? typed : value;
}
