// What is to be run on what is dropped or chosen, as it is chosen now.

/** @typedef {{analysis: string, args: Record<string, any>}} Choice */

/** @type {Choice | null} null: what the folder says */
let chosen = null;

/** The choice; null: what the folder says. */
export const choiceNow = () => chosen;
/** @param {Choice | null} choice */
export const setChoice = (choice) => { chosen = choice; };
/** @param {Choice} choice */
export const named = ({ analysis, args }) => (args.model ? `${analysis}, ${args.model}` : analysis);
