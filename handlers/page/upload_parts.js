// Sends one film in parts, four at a time, each signed when its turn comes and checked by its CRC32.
// What is there, the store says: so an upload goes on after a reload, a sleep, or a store that was away.

import { ApiError, call } from "./api.js";
import { crc32, toldOf } from "./crc32.js";

const AT_ONCE = 4;
const ROUNDS = 3; // begun anew so many times, where the store has other parts than were sent
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 10_000;
/** What a store says of a part whose bytes changed on the way. */
const CHANGED_ON_THE_WAY = /BadDigest|XAmzContentChecksumMismatch/;

/** @typedef {{state: string, key: string, upload_id: string, size: number, part_bytes: number,
 *   file_id: string, crc32?: string | null, parts: {number: number, size: number, etag: string, crc32: string | null}[]}} Ticket */
/** @typedef {{sent: (bytes: number) => void, away: (why: string) => void, begun?: (ticket: Ticket) => void,
 *   signal: AbortSignal}} Watching */

/** An error after which the same may be tried again. */
class AwayError extends Error {}

/**
 * Send a film, or compare it with the one that is there.
 * @param {File} file
 * @param {Record<string, unknown>} request as POST /uploads/parts takes it
 * @param {Watching} watching is told of bytes that went, or were there (negative: they go again), and
 *   why nothing goes now ("" when it does again); its signal ends it, and what was sent stays
 * @returns {Promise<Ticket>}
 */
export async function sendInParts(file, request, watching) {
  let counted = 0;
  const count = (/** @type {number} */ bytes) => { counted += bytes; watching.sent(bytes); };
  for (let round = 1; ; round++) {
    /** @type {Ticket} */
    const ticket = await patiently(watching, () => call("POST", "/uploads/parts", request));
    if (ticket.state === "exists") {
      const isSame = await compare(file, ticket, count, watching.signal);
      count(file.size - counted);
      return { ...ticket, state: isSame ? "same" : "exists" };
    }
    watching.begun?.(ticket);
    const of = { key: ticket.key, upload_id: ticket.upload_id, size: ticket.size, part_bytes: ticket.part_bytes };
    try {
      const sums = await sendParts(file, ticket, of, { ...watching, sent: count });
      await patiently(watching, () => call("POST", "/uploads/parts/complete", { ...of, crc32: sums }));
      return ticket;
    } catch (error) {
      count(-counted);
      const again = error instanceof ApiError && ["parts_missing", "parts_differ", "no_upload"].includes(error.code);
      if (!again || round >= ROUNDS) throw error;
    }
  }
}

/**
 * Compare a film with the one of its name and size that is there, by the checksum that its store tells.
 *
 * Of one in parts of another size than ours, nobody knows which those are.
 * @param {File} file
 * @param {Ticket} ticket
 * @param {(bytes: number) => void} count is told of bytes that were read
 * @param {AbortSignal} signal
 * @returns {Promise<boolean>} whether it is the same; no: nobody can tell
 */
async function compare(file, ticket, count, signal) {
  const told = ticket.crc32 ?? "";
  const number = Number(told.split("-")[1] ?? 0);
  const bytes = number > 1 ? ticket.part_bytes : file.size;
  if (!told || (number > 1 && number !== Math.ceil(file.size / bytes))) return false;
  let counted = 0;
  const read = (/** @type {number} */ some) => { signal.throwIfAborted(); counted += some; count(some); };
  try {
    /** @type {string[]} */
    const sums = [];
    for (let start = 0; start < file.size; start += bytes) {
      sums.push(await crc32(file.slice(start, start + bytes), read));
    }
    if (toldOf(sums, number > 0) === told) return true;
  } catch (error) {
    count(-counted);
    signal.throwIfAborted();
    return await readable(Promise.reject(error));
  }
  count(-counted);
  throw new Error(`${ticket.key} is there, as large as this one, with other content; nothing is replaced: `
    + "choose another folder or name, or delete that one first");
}

/**
 * @param {File} file
 * @param {Ticket} ticket
 * @param {Record<string, unknown>} of names the upload to the API
 * @param {Watching} watching
 * @returns {Promise<string[]>} the CRC32 of each part
 */
async function sendParts(file, ticket, of, watching) {
  const count = Math.ceil(ticket.size / ticket.part_bytes);
  const there = new Map(ticket.parts.map((part) => [part.number, part]));
  /** @type {string[]} */
  const sums = Array(count);
  let next = 1;
  const stop = new AbortController();
  const all = { ...watching, signal: AbortSignal.any([watching.signal, stop.signal]) };
  const lane = async () => {
    while (next <= count) {
      const number = next++;
      const start = (number - 1) * ticket.part_bytes;
      const blob = file.slice(start, start + ticket.part_bytes);
      const known = there.get(number);
      sums[number - 1] = await sendPart(blob, number, known, of, all);
    }
  };
  try {
    await Promise.all(Array.from({ length: Math.min(AT_ONCE, count) }, lane));
  } finally {
    stop.abort(); // the other lanes, where one of them failed
  }
  return sums;
}

/**
 * @param {Blob} blob
 * @param {number} number from 1
 * @param {{size: number, crc32: string | null} | undefined} known what the store has of it
 * @param {Record<string, unknown>} of
 * @param {Watching} watching
 */
async function sendPart(blob, number, known, of, watching) {
  watching.signal.throwIfAborted();
  const sum = await readable(crc32(blob));
  // A store that tells no checksum compares them all when the upload is completed.
  if (known && known.size === blob.size && (known.crc32 === null || known.crc32 === sum)) {
    watching.sent(blob.size);
    return sum;
  }
  await patiently(watching, async () => {
    const { items } = await call("POST", "/uploads/parts/sign", { ...of, parts: [{ number, crc32: sum }] });
    await put(items[0], blob, watching);
  });
  return sum;
}

/**
 * @template T
 * @param {Promise<T>} reading
 * @returns {Promise<T>}
 */
async function readable(reading) {
  try {
    return await reading;
  } catch (error) {
    throw new Error(`this browser can't read it any more (${/** @type {Error} */ (error).message}): was it `
      + "changed, moved, or is it still being recorded? Choose it again.");
  }
}

/**
 * @param {{url: string, headers: Record<string, string>}} signed
 * @param {Blob} blob
 * @param {Watching} watching
 */
function put(signed, blob, { sent, signal }) {
  return new Promise((/** @type {(value?: unknown) => void} */ resolve, reject) => {
    const request = new XMLHttpRequest();
    let counted = 0;
    const count = (/** @type {number} */ bytes) => { sent(bytes - counted); counted = bytes; };
    const fail = (/** @type {Error} */ error) => { count(0); reject(error); };
    request.open("PUT", signed.url);
    for (const [name, value] of Object.entries(signed.headers)) {
      if (name.toLowerCase() !== "content-length") request.setRequestHeader(name, value);
    }
    request.upload.onprogress = (event) => count(event.loaded);
    request.onload = () => {
      if (request.status < 300) {
        count(blob.size);
        resolve();
        return;
      }
      const why = `the store said ${request.status}${saidBy(request.responseText)}`;
      const again = [403, 408, 429].includes(request.status) || request.status >= 500
        || CHANGED_ON_THE_WAY.test(request.responseText);
      if (request.status === 404) fail(new ApiError(404, { code: "no_upload", message: why }));
      else fail(again ? new AwayError(why) : new Error(why));
    };
    request.onerror = () => fail(new AwayError("the store can't be reached from this browser"));
    request.onabort = () => fail(new DOMException("stopped", "AbortError"));
    signal.addEventListener("abort", () => request.abort());
    if (signal.aborted) fail(new DOMException("stopped", "AbortError"));
    else request.send(blob);
  });
}

/** @param {string} answer of a store, XML */
function saidBy(answer) {
  const message = /<Message>([^<]*)/.exec(answer)?.[1];
  return message ? `: ${message}` : "";
}

/**
 * Do something again and again while the network or a server is away.
 * @template T
 * @param {Watching} watching
 * @param {() => Promise<T>} work
 * @returns {Promise<T>}
 */
export async function patiently({ away, signal }, work) {
  for (let attempt = 0; ; attempt++) {
    signal.throwIfAborted();
    try {
      const done = await work();
      if (attempt > 0) away("");
      return done;
    } catch (error) {
      if (!isAway(error)) throw error;
      away(/** @type {Error} */ (error).message);
      await pause(Math.min(FIRST_PAUSE_MS * 2 ** attempt, LONGEST_PAUSE_MS), signal);
    }
  }
}

/** @param {unknown} error */
function isAway(error) {
  if (error instanceof ApiError) return error.status === 0 || error.status >= 500 || error.status === 429;
  // What fetch throws where nothing answers, and what is no JSON: a proxy's page.
  return error instanceof AwayError || error instanceof TypeError || error instanceof SyntaxError;
}

/**
 * @param {number} ms
 * @param {AbortSignal} signal
 */
function pause(ms, signal) {
  return new Promise((/** @type {(value?: unknown) => void} */ resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    // Back from a sleep or a dead line, nobody waits any longer.
    addEventListener("online", resolve, { once: true, signal });
    signal.addEventListener("abort", () => { clearTimeout(timer); reject(new DOMException("stopped", "AbortError")); });
  });
}
