// Files that were dropped or chosen, each with its path: the tree of a folder is kept.

/** @typedef {{file: File, path: string}} Found */

/**
 * The files of a drop, of its folders too. To be called in the drop's own event, before any await.
 * @param {DataTransfer} dropped
 * @returns {Promise<Found[]>}
 */
export async function filesOfDrop(dropped) {
  const entries = [...dropped.items].filter((item) => item.kind === "file")
    .map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile());
  /** @type {Found[]} */
  const found = [];
  for (const entry of entries) {
    if (entry instanceof File) found.push({ file: entry, path: entry.name });
    else if (entry) await collect(entry, found);
  }
  return found;
}

/**
 * The files of an input, which tells their folders where it lets a folder be chosen.
 * @param {HTMLInputElement} input
 * @returns {Found[]}
 */
export const filesOfInput = (input) => [...(input.files ?? [])].map((file) =>
  ({ file, path: file.webkitRelativePath || file.name }));

/**
 * @param {FileSystemEntry} entry
 * @param {Found[]} found gets its files
 */
async function collect(entry, found) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) =>
      /** @type {FileSystemFileEntry} */ (entry).file(resolve, reject));
    found.push({ file, path: entry.fullPath.replace(/^\//, "") });
    return;
  }
  const reader = /** @type {FileSystemDirectoryEntry} */ (entry).createReader();
  for (;;) {
    // A browser gives a hundred at a time, and none when there are no more.
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (some.length === 0) return;
    for (const each of some) await collect(each, found);
  }
}
