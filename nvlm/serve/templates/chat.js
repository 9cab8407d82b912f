"use strict";
// Whatever comes from a file, a person or a model becomes text by textContent, never markup.

const byId = (id) => document.getElementById(id);
const NUMBERS = ["temperature", "top_p", "top_k", "seed", "max_tokens"];
let model = "";
let limits = {};
let turns = [];      // {role, text, images}: what the next question follows
let attached = [];   // {name, url, preview, figure}: of the next question
let following = true;  // whether the end of the conversation is in view
let running = null;  // the AbortController of the answer in the making

function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function plural(count, word) {
  return `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
}

function showError(message) {
  const box = byId("error");
  box.replaceChildren();
  box.hidden = !message;
  if (message) box.append(make("p", message));
}

// ------------------------------------------------------------------------------------- the server

async function ask(path, body, signal) {
  const headers = {};
  const key = byId("key").value.trim();
  if (key) headers.Authorization = `Bearer ${key}`;
  const options = { headers, signal };
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    options.method = "POST";
    options.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(/header/i.test(error.message) ? "The key has characters that a key cannot have." : "The server does not answer: has it ended?");
  }
  if (!response.ok) {
    if (response.status === 401) askForKey();
    const answer = await response.json().catch(() => null);
    throw new Error(answer?.error?.message ?? `The server answered with status ${response.status}.`);
  }
  return response;
}

function askForKey() {
  openSettings(true);
  byId("key").focus();
}

async function readModel() {
  try {
    const answer = await (await ask("/v1/models")).json();
    model = answer.data[0].id;
    limits = answer.data[0].limits;
  } catch (error) {
    showError(error.message);
    return false;
  }
  byId("model").textContent = model;
  document.title = `${model} - nvlm`;
  byId("max_tokens").max = limits.max_new_tokens;
  byId("max_tokens").placeholder = `up to ${limits.max_new_tokens}`;
  showError("");
  return true;
}

// Yields the JSON of each server-sent event.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    let end;
    while ((end = rest.indexOf("\n\n")) >= 0) {
      const line = rest.slice(0, end);
      rest = rest.slice(end + 2);
      if (line === "data: [DONE]") return;
      if (line.startsWith("data: ")) yield JSON.parse(line.slice(6));
    }
  }
}

// ----------------------------------------------------------------------------------------- images

function readFile(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name} cannot be read.`));
    reader.readAsDataURL(file);
  });
}

async function attach(files) {
  showError("");
  for (const file of files) {
    const image = { name: file.name || "pasted image", url: "", figure: make("figure") };
    image.figure.append(make("figcaption", `${image.name}: reading`));
    attached.push(image);
    showAttached();
    try {
      image.url = await readFile(file);
      image.preview = await previewOf(image.url);
      fillFigure(image);
    } catch (error) {
      attached = attached.filter((other) => other !== image);
      showError(`${image.name}: ${error.message}`);
    }
    showAttached();
  }
}

async function previewOf(url) {
  return (await ask("/v1/nvlm/preview", { image: url, detail: detail() })).json();
}

const detail = () => (byId("low").checked ? "low" : "auto");

function showAttached() {
  attached.forEach((image, number) => {
    image.figure.querySelector(".remove")?.remove();
    const button = make("button", "\u00d7", "remove");
    button.type = "button";
    button.setAttribute("aria-label", `Remove image ${number + 1}, ${image.name}`);
    button.onclick = () => {
      attached = attached.filter((other) => other !== image);
      showAttached();
      byId("question").focus();
    };
    image.figure.prepend(button);
  });
  byId("images").replaceChildren(...attached.map((image) => image.figure));
}

function picture(url, description) {
  const element = make("img");
  element.src = url;
  element.alt = description;
  return element;
}

// The picture with its grid, what it costs, and its tiles one by one.
function fillFigure(image) {
  const seen = image.preview;
  const over = make("div", undefined, "over");
  over.style.gridTemplateColumns = `repeat(${seen.columns}, 1fr)`;
  over.style.gridTemplateRows = `repeat(${seen.rows}, 1fr)`;
  over.setAttribute("aria-hidden", "true");
  for (const cell of seen.cells) {
    const place = make("span");
    if (cell.label) place.append(make("b", cell.label));
    over.append(place);
  }
  const frame = make("div", undefined, "frame");
  frame.append(picture(seen.picture, image.name), over);
  const caption = make("figcaption");
  const thumbnail = seen.thumbnail ? " and a thumbnail" : "";
  const grid = seen.columns * seen.rows > 1 ? `${seen.columns} \u00d7 ${seen.rows} tiles${thumbnail}` : "one tile";
  caption.append(make("b", image.name), `: ${seen.width} \u00d7 ${seen.height} pixels, ${grid}, ${plural(seen.num_tokens, "token")}`);
  image.figure.replaceChildren(frame, caption, tilesOf(seen));
}

function tilesOf(seen) {
  const shown = seen.tiles.length ? [...seen.tiles] : [{ tag: seen.cells[0].tag, picture: seen.picture }];
  if (seen.thumbnail) shown.push(seen.thumbnail);
  const box = make("details");
  box.append(make("summary", shown.length > 1 ? `Its ${shown.length} tiles and tags` : "Its tile and tag"));
  const grid = make("div", undefined, "tiles");
  for (const tile of shown) {
    const one = make("div");
    one.append(picture(tile.picture, tile.tag || "tile"), make("code", tile.tag || "no tag"));
    grid.append(one);
  }
  box.append(grid);
  return box;
}

// ----------------------------------------------------------------------------------- conversation

function showTurn(role, text, images) {
  byId("hint").hidden = true;
  const turn = make("section", undefined, `turn ${role}`);
  turn.append(make("h2", role === "user" ? "You" : model));
  if (images.length) {
    const pictures = make("div", undefined, "pictures");
    pictures.append(...images.map((image) => image.figure));
    turn.append(pictures);
  }
  const said = make("div", text, "said");
  if (text || role === "assistant") turn.append(said);
  byId("log").append(turn);
  scrollDown();
  return { turn, said };
}

function scrollDown() {
  const log = byId("log");
  log.scrollTop = log.scrollHeight;
}

// The end stays in view until somebody scrolls up to read.
byId("log").onscroll = () => {
  const log = byId("log");
  following = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
};
new ResizeObserver(() => following && scrollDown()).observe(byId("log"));

function message(turn) {
  if (!turn.images.length) return { role: turn.role, content: turn.text };
  const parts = turn.images.map((image) => ({ type: "image_url", image_url: { url: image.url, detail: detail() } }));
  if (turn.text) parts.push({ type: "text", text: turn.text });
  return { role: turn.role, content: parts };
}

function settings() {
  const body = { model, stream: true, stream_options: { include_usage: true } };
  for (const name of NUMBERS) {
    const field = byId(name);
    if (!field.validity.valid) throw new Error(`${field.labels[0].textContent.trim()}: ${field.validationMessage}`);
    if (field.value !== "") body[name] = Number(field.value);
  }
  if (byId("stop_text").value) body.stop = byId("stop_text").value;
  return body;
}

async function send() {
  const text = byId("question").value;
  if (running || (!text.trim() && !attached.length)) return;
  if (attached.some((image) => !image.preview)) return showError("An image is still being read.");
  showError("");
  if (!model && !(await readModel())) return;
  const question = { role: "user", text, images: attached };
  let body;
  try {
    body = settings();
  } catch (error) {
    return showError(error.message);
  }
  const system = byId("system").value;
  const messages = system ? [{ role: "system", content: system }] : [];
  body.messages = [...messages, ...[...turns, question].map(message)];
  attached.forEach((image) => image.figure.querySelector(".remove")?.remove());
  attached = [];
  showAttached();
  byId("question").value = "";
  fit();
  const shown = showTurn("user", text, question.images);
  await answer(question, body, shown.turn);
}

async function answer(question, body, questionTurn) {
  const { turn, said } = showTurn("assistant", "", []);
  turn.classList.add("busy");
  byId("log").setAttribute("aria-busy", "true");
  setRunning(new AbortController());
  let text = "";
  let ended = "stopped";
  let usage = null;
  let failure = "";
  try {
    const response = await ask("/v1/chat/completions", body, running.signal);
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices[0];
      if (choice?.delta.content) said.textContent = text += choice.delta.content;
      if (choice?.finish_reason) ended = choice.finish_reason;
      if (event.usage) usage = event.usage;
      if (following) scrollDown();
    }
    if (ended === "stopped") failure = "The answer broke off: has the server ended?";
  } catch (error) {
    if (error.name !== "AbortError") failure = error.message;
  }
  turn.classList.remove("busy");
  byId("log").removeAttribute("aria-busy");
  setRunning(null);
  if (failure) showError(failure);
  if (!text && !usage) {
    // Nothing came of it: the question goes back to where it was written.
    turn.remove();
    questionTurn.remove();
    byId("hint").hidden = turns.length > 0;
    byId("question").value = byId("question").value || question.text;
    attached = [...question.images, ...attached];
    showAttached();
    fit();
    return;
  }
  turns.push(question, { role: "assistant", text, images: [] });
  if (!text) {
    said.textContent = "An empty answer";
    said.classList.add("none");
  }
  const why = { stop: "ended by itself or at a stop text", length: "cut off at the most new tokens", stopped: failure ? "broke off" : "stopped by you" }[ended] ?? ended;
  const counts = usage ? `${plural(usage.prompt_tokens, "token")} read, ${plural(usage.completion_tokens, "token")} written; ` : "";
  turn.append(make("div", counts + why, "note"));
  scrollDown();
}

function setRunning(controller) {
  running = controller;
  byId("send").hidden = controller !== null;
  byId("stop").hidden = controller === null;
  byId("fresh").disabled = controller !== null;
}

function fresh() {
  turns = [];
  byId("log").querySelectorAll(".turn").forEach((turn) => turn.remove());
  byId("hint").hidden = false;
  showError("");
  byId("question").focus();
}

// ------------------------------------------------------------------------------------------ input

function fit() {
  const field = byId("question");
  field.style.height = "auto";
  field.style.height = `${Math.max(40, field.scrollHeight + 2)}px`;
}

function openSettings(open) {
  byId("settings").hidden = !open;
  byId("toggle").setAttribute("aria-expanded", String(open));
}

const imagesOf = (list) => [...list].filter((file) => file.type.startsWith("image/"));

byId("composer").onsubmit = (event) => {
  event.preventDefault();
  send();
};
byId("settings").onsubmit = (event) => event.preventDefault();
byId("question").oninput = fit;
byId("question").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
};
byId("stop").onclick = () => running?.abort();
byId("fresh").onclick = fresh;
byId("toggle").onclick = () => openSettings(byId("settings").hidden);
byId("key").onchange = readModel;
byId("attach").onclick = () => byId("files").click();
byId("files").onchange = (event) => {
  attach([...event.target.files]);
  event.target.value = "";
};
// A request's images have one detail: those of earlier turns are sent again with it.
byId("low").onchange = async () => {
  const images = [...turns.flatMap((turn) => turn.images), ...attached];
  for (const image of images.filter((other) => other.preview)) {
    try {
      image.preview = await previewOf(image.url);
      fillFigure(image);
    } catch (error) {
      showError(`${image.name}: ${error.message}`);
    }
  }
  showAttached();
};
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
document.addEventListener("paste", (event) => {
  const images = imagesOf(event.clipboardData?.files ?? []);
  if (images.length) {
    event.preventDefault();
    attach(images);
  }
});
const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
document.addEventListener("dragover", (event) => {
  if (!hasFiles(event)) return;  // such as text, which goes into a field
  event.preventDefault();
  byId("drop").hidden = false;
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) byId("drop").hidden = true;
});
document.addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  byId("drop").hidden = true;
  const images = imagesOf(event.dataTransfer.files);
  if (images.length) attach(images);
  else showError("What was dropped is no image file.");
});

readModel();
byId("question").focus();
