// The page of `clnn serve`: a drawing by mouse, touch or keyboard, sent as it grows; the answer, and what each layer computes.
"use strict";

const at = (id) => document.getElementById(id);
const paper = at("paper");
const STROKE = 0.075; // of the paper's side: about MNIST's, once a digit is scaled to its box
const SENT = 112; // pixels of a side that the server gets
let strokes = []; // lists of points, [x, y] in [0, 1]
let stroke = null; // the one that grows
const pen = { x: 0.5, y: 0.25, down: false, shown: false }; // the keyboard's

// -- drawing ---------------------------------------------------------------------------------------------------------
function draw(canvas, side, ink) {
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.lineCap = context.lineJoin = "round";
  context.strokeStyle = context.fillStyle = ink;
  context.lineWidth = STROKE * side;
  for (const points of strokes) {
    context.beginPath();
    context.moveTo(points[0][0] * side, points[0][1] * side);
    // a point alone is a dot; between others curves go through the middles, so that fast strokes stay round
    for (let i = 1; i < points.length; i++) {
      const [x, y] = points[i - 1], [u, v] = points[i];
      if (i > 1) context.quadraticCurveTo(x * side, y * side, ((x + u) / 2) * side, ((y + v) / 2) * side);
    }
    const [x, y] = points[points.length - 1];
    context.lineTo(x * side, y * side);
    context.stroke();
  }
  return context;
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function show() {
  const side = Math.round(paper.clientWidth * (window.devicePixelRatio || 1));
  if (!side) return;
  paper.width = paper.height = side;
  const context = paper.getContext("2d", { willReadFrequently: true });
  context.fillStyle = colour("--grid"); // as fine as every second pixel that the model gets
  for (let x = 1; x < 14; x++) for (let y = 1; y < 14; y++) {
    context.beginPath();
    context.arc((x / 14) * side, (y / 14) * side, side * 0.004, 0, 7);
    context.fill();
  }
  if (!strokes.length && !pen.shown) {
    context.fillStyle = colour("--soft");
    context.textAlign = "center";
    context.font = `${side * 0.05}px system-ui, sans-serif`;
    context.fillText("by mouse, finger or keyboard", side / 2, side * 0.518);
  }
  draw(paper, side, colour("--ink"));
  if (pen.shown) {
    context.strokeStyle = context.fillStyle = colour("--accent");
    context.lineWidth = side * 0.008;
    context.beginPath();
    context.arc(pen.x * side, pen.y * side, side * 0.035, 0, 7);
    if (pen.down) context.fill(); else context.stroke();
  }
}

function begin(x, y) {
  stroke = [[x, y]];
  strokes.push(stroke);
  changed();
}

function go(x, y) {
  if (!stroke) return;
  const [u, v] = stroke[stroke.length - 1];
  if (Math.hypot(x - u, y - v) < 0.004) return;
  stroke.push([x, y]);
  changed();
}

function lift() {
  stroke = null;
  pen.down = false;
  at("pen").textContent = "";
}

function place(event) {
  const box = paper.getBoundingClientRect();
  const within = (value) => Math.min(1, Math.max(0, value));
  return [within((event.clientX - box.left) / box.width), within((event.clientY - box.top) / box.height)];
}

paper.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || !event.isPrimary) return;
  event.preventDefault();
  paper.focus({ preventScroll: true });
  paper.setPointerCapture(event.pointerId);
  lift();
  pen.shown = false;
  begin(...place(event));
});
paper.addEventListener("pointermove", (event) => {
  if (!stroke || !event.isPrimary || pen.down) return;
  const every = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
  for (const one of every.length ? every : [event]) go(...place(one));
});
for (const name of ["pointerup", "pointercancel"]) paper.addEventListener(name, lift);

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
paper.addEventListener("keydown", (event) => {
  if (event.altKey || (event.metaKey || event.ctrlKey) && event.key.toLowerCase() !== "z") return;
  if (MOVES[event.key]) {
    const step = event.shiftKey ? 0.1 : 0.04, within = (value) => Math.min(0.95, Math.max(0.05, value));
    pen.x = within(pen.x + MOVES[event.key][0] * step);
    pen.y = within(pen.y + MOVES[event.key][1] * step);
    if (pen.down) go(pen.x, pen.y);
  } else if (event.key === " ") {
    if (pen.down) lift();
    else {
      begin(pen.x, pen.y);
      pen.down = true;
      at("pen").textContent = "the pen is down";
    }
  } else if (event.key.toLowerCase() === "z" || event.key === "Backspace") undo();
  else if (event.key === "Escape" || event.key === "Delete") clear();
  else return;
  event.preventDefault();
  pen.shown = true;
  show();
});
paper.addEventListener("blur", () => { if (pen.down) lift(); pen.shown = false; show(); });

function undo() { lift(); strokes.pop(); changed(); }
function clear() { lift(); strokes = []; changed(); }
at("undo").addEventListener("click", undo);
at("clear").addEventListener("click", clear);
new ResizeObserver(show).observe(paper);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { show(); if (last) answered(last); });

// -- asking ----------------------------------------------------------------------------------------------------------
async function ask(path, body, type) {
  const response = await fetch(path, body === undefined ? {} : { method: "POST", body, headers: { "Content-Type": type } });
  const found = await response.json();
  if (!response.ok) throw new Error(found.error);
  return found;
}

function failed(error) {
  at("error").hidden = !error;
  if (error) at("error").textContent = error instanceof TypeError ? "The server does not answer: has it ended?" : error.message;
}

let asking = false, newer = false, last = null, classes = 0;
const hidden = document.createElement("canvas");
hidden.width = hidden.height = SENT;

function changed() {
  requestAnimationFrame(show);
  newer = true;
  if (!asking) send();
}

async function send() { // one request at a time; what has changed meanwhile goes with the next
  asking = true;
  while (newer) {
    newer = false;
    const context = hidden.getContext("2d", { willReadFrequently: true });
    context.fillStyle = "#000";
    context.fillRect(0, 0, SENT, SENT);
    draw(hidden, SENT, "#fff");
    const pixels = context.getImageData(0, 0, SENT, SENT).data.filter((_, i) => i % 4 === 0);
    try {
      answered(await ask("draw", new Uint8Array(pixels), "application/octet-stream"));
      failed(null);
    } catch (error) {
      failed(error);
    }
  }
  asking = false;
}

// -- answers ---------------------------------------------------------------------------------------------------------
function answered(found) {
  last = found;
  const none = found.scores === undefined;
  at("answer").textContent = none || found.answer === null ? "?" : found.answer;
  const probable = found.what === "probability";
  at("sure").textContent = none ? "" : probable && found.answer !== null ? `${percent(found.scores[found.answer])} sure` : "by the largest output";
  const list = at("scores"), scores = none ? new Array(classes).fill(0) : found.scores;
  at("legend").hidden = none;
  while (list.children.length > scores.length) list.lastChild.remove();
  while (list.children.length < scores.length) {
    const row = document.createElement("li");
    row.append(String(list.children.length), Object.assign(document.createElement("span"), { className: "bar" }),
      Object.assign(document.createElement("span"), { className: "value" }));
    row.children[0].append(document.createElement("i"));
    list.append(row);
  }
  const low = Math.min(...scores), high = Math.max(...scores);
  scores.forEach((score, i) => {
    const row = list.children[i], share = none ? 0 : probable ? score : (score - low) / (high - low || 1);
    row.className = !none && i === found.answer ? "best" : "";
    row.querySelector("i").style.width = `${100 * share}%`;
    row.querySelector(".value").textContent = none ? "" : probable ? percent(score) : score.toPrecision(3);
  });
  const layers = at("layers");
  layers.replaceChildren();
  if (none) {
    layers.append("Nothing yet: it appears while you draw.");
    return;
  }
  layers.append(layer("what it sees", "in the middle, as the data set has it", found.picture, 3));
  for (const one of found.layers) layers.append(layer(one.name, one.shape.join(" × "), one));
  if (found.more) layers.append(`and ${found.more} more layers`);
}

const percent = (share) => share < 1 && share > 0.9999 ? "> 99.99 %" : `${(100 * share).toFixed(share > 0.999 && share < 1 ? 2 : 1)} %`;

function layer(title, shape, found, zoom) {
  const row = document.createElement("div"), words = document.createElement("div");
  row.className = "layer";
  for (const [name, text] of [["title", title], ["shape", shape]])
    words.append(Object.assign(document.createElement("div"), { className: name, textContent: text }));
  row.append(words, pictures(found, zoom, `${title}, ${shape}`));
  return row;
}

const COLOURS = { below: [46, 127, 228], above: [228, 87, 46] };

function pictures(found, zoom, words) { // maps side by side, units as squares
  const values = Int8Array.from(atob(found.data), (c) => c.charCodeAt(0) << 24 >> 24);
  const units = found.maps.length < 2;
  let [n, h, w] = found.maps.length === 2 ? [1, ...found.maps] : found.maps;
  if (units) [n, h, w] = [found.maps[0] ?? 1, 1, 1];
  const gap = units ? 2 : 4, room = Math.max(120, (at("layers").clientWidth || 300) - (window.innerWidth > 480 ? 170 : 0));
  const size = zoom ? zoom * h : units ? (n > 128 ? 8 : n > 32 ? 14 : 24) : 64;
  const most = Math.max(1, Math.floor((room + gap) / (size + gap))), across = Math.ceil(n / Math.ceil(n / most)); // even rows
  const cell = zoom || Math.max(1, Math.floor(Math.min(units ? size : 88, room / across - gap) / Math.max(h, w)));
  const canvas = document.createElement("canvas"), dense = Math.min(2, Math.ceil(window.devicePixelRatio || 1));
  canvas.width = (across * (w * cell + gap) - gap) * dense;
  canvas.height = (Math.ceil(n / across) * (h * cell + gap) - gap) * dense;
  canvas.style.width = `${canvas.width / dense}px`;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `values of ${words}`);
  const context = canvas.getContext("2d");
  context.scale(dense, dense);
  const dark = matchMedia("(prefers-color-scheme: dark)").matches, zero = dark ? [42, 45, 52] : [239, 235, 226];
  for (let i = 0; i < n; i++) {
    const left = (i % across) * (w * cell + gap), top = Math.floor(i / across) * (h * cell + gap);
    for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) {
      const value = values[(i * h + y) * w + x] / 127, to = value < 0 ? COLOURS.below : COLOURS.above, share = Math.abs(value) ** 0.7;
      context.fillStyle = `rgb(${zero.map((z, k) => Math.round(z + (to[k] - z) * share)).join(" ")})`;
      context.fillRect(left + x * cell, top + y * cell, cell, cell);
    }
  }
  return canvas;
}

// -- the model, and asking with numbers ------------------------------------------------------------------------------
at("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    at("result").textContent = JSON.stringify(await ask("predict", at("body").value, "application/json"), null, 1);
    failed(null);
  } catch (error) {
    failed(error);
  }
});

ask("model").then((model) => {
  document.title = `${model.name} · clnn serve`;
  at("name").textContent = model.name;
  at("summary").textContent = model.summary;
  const told = (one) => `${one.name}, ${one.type}, (batch${(one.shape || ["any shape"]).map((size) => `, ${size ?? "?"}`).join("")})`;
  at("about").textContent = `takes ${model.inputs.map(told).join("; ")}`;
  at("curl").textContent = `curl ${location.href}predict -H "Content-Type: application/json" -d '{"x": [[...]]}'`;
  at("digit").hidden = !model.draws;
  classes = model.classes;
  at("arrays").hidden = model.draws;
  if (model.draws) {
    show();
    changed();
    paper.focus({ preventScroll: true });
  } else {
    const zeros = (shape) => shape.reduceRight((inner, size) => new Array(typeof size === "number" ? Math.min(size, 64) : 1).fill(inner), 0);
    const of = (one) => [zeros(one.shape || [1])];
    const x = model.inputs.length > 1 ? Object.fromEntries(model.inputs.map((one) => [one.name, of(one)])) : of(model.inputs[0]);
    at("takes").textContent = `This model takes no drawing of a digit, but ${model.inputs.map(told).join("; ")}.`;
    at("body").value = JSON.stringify({ x });
  }
}).catch(failed);
