// Calls of posedrop's HTTP API.

let refused = false;

// Once a token is refused the page stops asking: else the browser would ask for one every 3 s.
export const isRefused = () => refused;
/** @type {(() => void)[]} */
const ends = [];
/** Have something done once the token is refused. @param {() => void} act */
export const whenRefused = (act) => { ends.push(act); };

/** What a person can do then: the server's own words are for who writes programs. */
const SHUT = "posedrop does not let this page in any more: its token was changed, or too much time has passed. Open the link that posedrop printed last";
export const REFUSED = `${SHUT}, then load this page anew.`;
/** The same where this page has what would be lost. */
export const REFUSED_MIDWAY = `${SHUT} in another tab, then go on here.`;

/** By how much the server's clock is ahead of this computer's, which may be wrong by hours; milliseconds. */
let ahead = 0;
/** The time by the server's clock, milliseconds. */
export const serverNow = () => Date.now() + ahead;

/** An error as the API answers it: words for a person, and the parts of the request it is about. */
export class ApiError extends Error {
  /**
   * @param {number} status of HTTP
   * @param {{message?: string, code?: string, errors?: {loc: (string | number)[], message: string}[]}} [problem]
   */
  constructor(status, problem = {}) {
    super(problem.message ?? `HTTP ${status}`);
    this.status = status;
    this.code = problem.code ?? "error";
    this.errors = problem.errors ?? [];
  }
}

/**
 * @param {string} path
 * @param {RequestInit} options
 */
async function answerOf(path, options) {
  try {
    return await fetch(path, options);
  } catch {
    throw new ApiError(0, { code: "away", message: "posedrop does not answer: is it running, and is this computer on its network?" });
  }
}

/** @param {Response} response */
async function jsonOf(response) {
  try {
    return await response.json();
  } catch {
    const message = `what answered is not posedrop (HTTP ${response.status}): is it being started, or is a proxy before it?`;
    throw new ApiError(response.ok ? 0 : response.status, { code: "away", message });
  }
}

/**
 * @param {string} method
 * @param {string} path
 * @param {unknown} [body] sent as JSON
 * @param {Record<string, string>} [headers]
 * @returns {Promise<any>} the answer's JSON, null if it has none
 */
export async function call(method, path, body, headers = {}) {
  /** @type {RequestInit} */
  const options = { method, headers };
  if (body !== undefined) {
    options.headers = { "Content-Type": "application/json", ...headers };
    options.body = JSON.stringify(body);
  }
  const response = await answerOf(path, options);
  const date = Date.parse(response.headers.get("Date") ?? "");
  if (!Number.isNaN(date)) ahead = date - Date.now();
  const answer = response.status === 204 ? null : await jsonOf(response);
  if (response.status === 401) {
    const acts = refused ? [] : ends;
    refused = true;
    for (const act of acts) act();
    throw new ApiError(401, { code: "unauthorized", message: REFUSED });
  }
  if (response.status >= 400) throw new ApiError(response.status, answer?.error);
  return answer;
}
