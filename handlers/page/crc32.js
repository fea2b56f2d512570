// CRC32 of a part of a file, as S3 has it: crypto.subtle is not there on plain http.

// Eight tables, so that eight bytes are taken in one step: some hundred MB/s.
const TABLES = Array.from({ length: 8 }, () => new Uint32Array(256));
for (let byte = 0; byte < 256; byte++) {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  TABLES[0][byte] = crc;
}
for (let byte = 0; byte < 256; byte++) {
  for (let n = 1; n < 8; n++) {
    const before = TABLES[n - 1][byte];
    TABLES[n][byte] = (before >>> 8) ^ TABLES[0][before & 255];
  }
}

/**
 * The state of the checksum after some more bytes.
 * @param {number} crc the state before; 0xffffffff at the beginning
 * @param {Uint8Array} bytes
 */
export function update(crc, bytes) {
  const [t0, t1, t2, t3, t4, t5, t6, t7] = TABLES;
  const whole = bytes.length - (bytes.length % 8);
  let at = 0;
  for (; at < whole; at += 8) {
    crc ^= bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16) | (bytes[at + 3] << 24);
    crc = t7[crc & 255] ^ t6[(crc >>> 8) & 255] ^ t5[(crc >>> 16) & 255] ^ t4[crc >>> 24]
      ^ t3[bytes[at + 4]] ^ t2[bytes[at + 5]] ^ t1[bytes[at + 6]] ^ t0[bytes[at + 7]];
  }
  for (; at < bytes.length; at++) crc = (crc >>> 8) ^ t0[(crc ^ bytes[at]) & 255];
  return crc;
}

/** @param {number} crc the state after the last bytes */
export const hexadecimal = (crc) => ((crc ^ 0xffffffff) >>> 0).toString(16).padStart(8, "0");

/**
 * What S3 tells of an object that came in one piece, or in parts with these CRC32s.
 * @param {string[]} sums hexadecimal
 * @param {boolean} inParts
 * @returns {string}
 */
export function toldOf(sums, inParts) {
  const bytes = Uint8Array.from(sums.join("").match(/../g) ?? [], (pair) => parseInt(pair, 16));
  if (!inParts) return btoa(String.fromCharCode(...bytes));
  return `${toldOf([hexadecimal(update(0xffffffff, bytes))], false)}-${sums.length}`;
}

/**
 * CRC32 of a file, or of a part of one, hexadecimal; never more than a chunk of it is in memory.
 * @param {Blob} blob
 * @param {(bytes: number) => void} [read] is told of bytes that were read; what it throws ends it
 */
export async function crc32(blob, read) {
  let crc = 0xffffffff;
  const reader = blob.stream().getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return hexadecimal(crc);
    crc = update(crc, value);
    read?.(value.length);
  }
}
