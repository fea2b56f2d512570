// Files that were dropped or chosen, each with its path: the tree of a folder is kept.

export const RULE = /(^|\/)posedrop\.json$/;

/** @typedef {{file: File, path: string}} Found */
/** @typedef {{path: string, isFolder: boolean, why: string}} Unread what the browser could not read, as it vanished or has no rights */
/** @typedef {{found: Found[], unread: Unread[]}} Drop */

/**
 * The files of a drop, of its folders too. To be called in the drop's own event, before any await.
 * @param {DataTransfer} dropped
 * @returns {Promise<Drop>}
 */
export async function filesOfDrop(dropped) {
  const entries = [...dropped.items].filter((item) => item.kind === "file")
    .map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile());
  /** @type {Drop} */
  const drop = { found: [], unread: [] };
  for (const entry of entries) {
    if (entry instanceof File) drop.found.push({ file: entry, path: entry.name });
    else if (entry) await collect(entry, drop);
  }
  return drop;
}

/**
 * The files of an input, which tells their folders where it lets a folder be chosen.
 * @param {HTMLInputElement} input
 * @returns {Drop}
 */
export const filesOfInput = (input) => ({
  found: [...(input.files ?? [])].map((file) => ({ file, path: file.webkitRelativePath || file.name })),
  unread: [],
});

/**
 * @param {FileSystemEntry} entry
 * @param {Drop} drop gets its files; one that can't be read ends nothing
 */
async function collect(entry, drop) {
  const path = entry.fullPath.replace(/^\//, "");
  try {
    if (entry.isFile) {
      const file = await new Promise((resolve, reject) =>
        /** @type {FileSystemFileEntry} */ (entry).file(resolve, reject));
      drop.found.push({ file, path });
      return;
    }
    const reader = /** @type {FileSystemDirectoryEntry} */ (entry).createReader();
    for (;;) {
      // A browser gives a hundred at a time, and none when there are no more.
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (some.length === 0) return;
      for (const each of some) await collect(each, drop);
    }
  } catch (error) {
    drop.unread.push({ path, isFolder: entry.isDirectory, why: /** @type {Error} */ (error).message });
  }
}
