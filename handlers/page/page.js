"use strict";
// Every name on this page came from outside: text goes in by textContent, never as HTML.

const byId = (id) => document.getElementById(id);
const OVER = new Set(["succeeded", "partial", "failed", "cancelled"]);
const cards = new Map();

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") node.addEventListener("click", value);
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

async function call(method, path, body) {
  const options = { method };
  if (body !== undefined) {
    options.headers = { "Content-Type": "application/json" };
    options.body = JSON.stringify(body);
  }
  const response = await fetch(path, options);
  const answer = response.status === 204 ? null : await response.json();
  if (response.status === 401) paused = true; // else the browser would ask for the token every 3 s
  if (response.status >= 400) throw new Error(answer?.error?.message ?? `HTTP ${response.status}`);
  return answer;
}

const ofSize = (bytes) => {
  if (bytes === null) return "";
  return bytes < 1e5 ? `${bytes} bytes` : `${(bytes / 1e6).toFixed(1)} MB`;
};
const when = (time) => new Date(time).toLocaleString();
const onTwoLines = (time) => [time.toLocaleDateString(), element("br"), time.toLocaleTimeString()];
const shortName = (key) => (key ?? "").split("/").pop();

function describeVideo(probe) {
  if (!probe) return "";
  return `${probe.width}×${probe.height}, ${probe.frames} frames, ${probe.duration.toFixed(1)} s`;
}

function fileRow(file) {
  const name = element("td", { title: file.key }, file.filename, element("br"),
    element("span", { class: "small" }, file.file_id));
  const state = element("td", {}, element("span", { class: `state ${file.state}` }, file.state));
  if (file.refusal) state.append(element("div", { class: "why" }, file.refusal.message));
  if (file.waiting) state.append(element("div", { class: "why" }, `waits, ${file.waiting.rule} is wrong`));
  if (file.duplicate_of) state.append(element("div", { class: "small" }, `same as ${file.duplicate_of}`));
  const image = ["ready", "film gone"].includes(file.state)
    ? element("img", { src: `/thumbnail/${file.file_id}`, alt: "" }) : "";
  const remove = element("button", {
    onclick: async () => {
      if (!confirm(`Delete ${file.filename} and all its results?`)) return;
      await call("DELETE", `/upload/${file.file_id}`);
      refresh();
    },
  }, "delete");
  const analyse = element("button", {
    title: "with the analysis chosen above",
    onclick: async () => {
      try {
        if (!byId("analysis").value) throw new Error("Choose above which analysis to run.");
        await call("POST", "/analyse", { file_id: file.file_id, ...wanted() });
        refresh();
      } catch (error) {
        alert(error.message);
      }
    },
  }, "analyse");
  return element("tr", {}, element("td", {}, image), name, state,
    element("td", {}, describeVideo(file.probe)), element("td", { class: "no-wrap" }, ofSize(file.size)),
    element("td", { class: "no-wrap" }, ...onTwoLines(new Date(file.created_at))),
    element("td", { class: "no-wrap" }, file.state === "ready" ? analyse : "", " ", remove));
}

// What is chosen above: an analysis and, where it needs one, a model.
function wanted() {
  const analysis = byId("analysis").value;
  if (!analysis) return {};
  return byId("model").hidden ? { analysis } : { analysis, args: { model: byId("model").value } };
}

// DeepLabCut's names begin with the film's and the scorer's, which are the same on all of a card.
function briefly(name, all) {
  const tables = all.filter((each) => /\.(h5|csv)$/.test(each) && each !== "timestamps.csv");
  let same = tables[0] ?? "";
  for (const each of tables) while (!each.startsWith(same)) same = same.slice(0, -1);
  same = same.replace(/[._]$/, "");
  return tables.length > 1 && same && name.startsWith(same) ? `poses${name.slice(same.length)}` : name;
}

function runCard(run) {
  const card = element("article", { class: "card" });
  const url = (name) => `/download/${run.analysis_id}/${encodeURIComponent(name)}`;
  if (run.labelled_video) {
    const poster = `/thumbnail/${run.file_id}`;
    card.append(element("video", { src: url(run.labelled_video), poster, controls: "", preload: "none" }));
  }
  const what = run.args.model ? `${run.analysis}, ${run.args.model}` : run.analysis;
  card.append(
    element("h3", { title: run.key ?? "" }, shortName(run.key)),
    element("p", {}, element("span", { class: `state ${run.status}` }, run.status), ` ${what}`),
    element("p", { class: "small" }, `${run.analysis_id}, ${when(run.created_at)}`),
  );
  if (run.error) card.append(element("p", { class: "why" }, run.error.message));
  if (run.quality !== null) {
    const [worst, ...others] = run.quality_reasons ?? [];
    const why = worst === undefined ? "" : `: ${worst}`;
    const all = others.join("\n");
    card.append(element("p", { class: "small", title: all }, `quality ${run.quality}${why}`));
  }
  if (OVER.has(run.status)) {
    const names = ["result.json", ...run.files.filter((name) => name !== run.labelled_video)];
    card.append(element("p", { class: "links" },
      ...names.map((name) => element("a", { href: url(name), title: name }, briefly(name, run.files)))));
  } else {
    const text = element("p", { class: "small" });
    const bar = element("progress");
    const cancel = element("button", {
      onclick: async () => { await call("DELETE", `/analyse/${run.analysis_id}`); refresh(); },
    }, "cancel");
    card.append(text, bar, cancel);
    watch(run, text, bar);
  }
  return card;
}

async function watch(run, text, bar) {
  const answer = await call("GET", `/results/${run.analysis_id}`);
  if (answer.progress) {
    const { stage, done, total, frames_per_second: speed } = answer.progress;
    text.textContent = stage + (total ? ` ${done}/${total} frames` : "")
      + (speed ? `, ${speed.toFixed(1)} frames/s` : "");
    if (total) { bar.max = total; bar.value = done; }
  } else if (answer.position !== null) {
    text.textContent = `${answer.position} before it`;
  }
}

async function list(path, target, more, empty, render, key) {
  const query = byId("query").value.trim();
  const first = `/${path}?limit=24${query ? `&q=${encodeURIComponent(query)}` : ""}`;
  const page = await call("GET", first);
  const nodes = page.items.map((item) => {
    // A card that has not changed stays, so that a video goes on playing.
    const text = JSON.stringify(item);
    const known = cards.get(item[key]);
    if (known && known.text === text && (item.files === undefined || OVER.has(item.status))) return known.node;
    const node = render(item);
    cards.set(item[key], { text, node });
    return node;
  });
  const box = byId(target);
  if (nodes.length !== box.children.length || nodes.some((node, i) => node !== box.children[i])) {
    box.replaceChildren(...nodes);
  }
  byId(empty).hidden = page.items.length > 0;
  const button = byId(more);
  button.hidden = page.next === null;
  button.onclick = async () => {
    const next = await call("GET", `${first}&cursor=${encodeURIComponent(page.next)}`);
    box.append(...next.items.map(render));
    page.next = next.next;
    button.hidden = page.next === null;
    paused = true;
  };
}

// Rules that are wrong: the videos below them wait.
async function rules() {
  const found = (await call("GET", "/rules")).items;
  byId("rules").replaceChildren(...found.map((rule) =>
    element("li", { class: "why" }, `${rule.rule} is wrong, the videos below it wait: ${rule.message}`)));
}

// What a person is to see to, such as a removal that was held back.
async function notices() {
  const found = (await call("GET", "/notices")).items;
  byId("notices").replaceChildren(...found.map((notice) => element("li", { class: "why" }, notice.message)));
}

let paused = false; // somebody reads older entries: leave them where they are
async function refresh() {
  await list("analyses", "runs", "more-runs", "no-runs", runCard, "analysis_id");
  await rules();
  await notices();
  await list("files", "files", "more-files", "no-files", fileRow, "file_id");
}

async function send(file) {
  const bar = element("progress", { max: file.size, value: 0 });
  const note = element("span");
  byId("uploads").append(element("li", {}, `${file.name} `, bar, note));
  try {
    const { upload } = await call("POST", "/upload", { filename: file.name, size: file.size, ...wanted() });
    await put(upload, file, bar);
    note.textContent = " is there";
    refresh();
  } catch (error) {
    note.className = "why";
    note.textContent = ` ${error.message}`;
  }
}

function put(upload, file, bar) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(upload.method, upload.url);
    for (const [name, value] of Object.entries(upload.headers)) {
      if (name.toLowerCase() !== "content-length") request.setRequestHeader(name, value);
    }
    request.upload.onprogress = (event) => { bar.value = event.loaded; };
    request.onload = () => (request.status < 300 ? resolve() : reject(new Error(`the store said ${request.status}`)));
    request.onerror = () => reject(new Error("the store can't be reached from this browser"));
    request.send(file);
  });
}

async function choices() {
  const types = (await call("GET", "/analysis-types")).items;
  const models = (await call("GET", "/models")).items;
  byId("analysis").append(element("option", { value: "" }, "what the folder says"),
    ...types.map((type) => element("option", { value: type.name, title: type.summary }, type.name)));
  byId("model").append(...[...new Set(models.map((model) => model.name))].map((name) => element("option", {}, name)));
  byId("analysis").onchange = () => {
    const type = types.find((each) => each.name === byId("analysis").value);
    byId("model").hidden = !type?.needs_model;
  };
}

const drop = byId("drop");
drop.ondragover = (event) => { event.preventDefault(); drop.classList.add("over"); };
drop.ondragleave = () => drop.classList.remove("over");
drop.ondrop = (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  [...event.dataTransfer.files].forEach(send);
};
byId("choose").onchange = (event) => [...event.target.files].forEach(send);
byId("search").onsubmit = (event) => { event.preventDefault(); paused = false; refresh(); };
byId("query").oninput = () => { paused = false; refresh(); };
choices();
refresh();
setInterval(() => { if (!paused && !document.hidden) refresh().catch(() => {}); }, 3000);
