// The page of `dafast demo`: everything it knows comes from the server that sent it.
import { Cloud } from "./cloud.js";

const $ = (id) => document.getElementById(id);
const FORMATS = [
  ["png16", "PNG, 16 bit"], ["color", "PNG, colours"], ["gray", "PNG, grey"], ["exr", "EXR"],
  ["npz", "npz"], ["npy", "npy"], ["tiff", "TIFF"], ["pfm", "PFM"], ["json", "JSON"],
  ["ply", "PLY points"], ["glb", "GLB mesh"],
];
// `dafast demo --token T` prints an address that ends in #T; what follows # is never sent as a URL.
const TOKEN = location.hash.length > 1 ? { authorization: `Bearer ${decodeURIComponent(location.hash.slice(1))}` } : {};
const state = { photo: null, name: "photo", facts: null, values: null, width: 0, height: 0, rows: {}, x: 0, y: 0, number: 0 };
let cloud = null;

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

// ---------------------------------------------------------------------------- the server

function address(format) {
  const query = new URLSearchParams({ format, model: $("model").value });
  if ($("fov").value) query.set("fov", $("fov").value);
  if (format === "color") query.set("palette", $("palette").value);
  return `v1/depth?${query}`;
}

async function request(format) {
  let answer;
  try {
    answer = await fetch(address(format), { method: "POST", body: state.photo, headers: TOKEN });
  } catch {
    throw new Error("The server does not answer. Is `dafast demo` still running?");
  }
  if (answer.ok) return answer;
  let detail = answer.statusText;
  try {
    detail = (await answer.json()).detail;
  } catch { /* not JSON: the status says enough */ }
  if (answer.status === 503) detail = `The server is busy. Try again in ${answer.headers.get("retry-after") || 1} s.`;
  if (answer.status === 415) detail = `${detail.replace(/^the picture: /, "This file ")}. JPEG, PNG, WebP, TIFF and HEIC work.`;
  throw new Error(detail);
}

async function predict() {
  if (!state.photo) return;
  const number = ++state.number;
  say("Computing ...");
  const start = performance.now();
  try {
    const answer = await request("npy");
    const file = await answer.arrayBuffer();
    if (number !== state.number) return; // another photo has come meanwhile
    readMap(answer.headers, file);
    const note = await drawPhoto();
    if (number !== state.number) return;
    $("result").hidden = false;
    $("low").value = 0;
    $("high").value = 100;
    state.x = state.width >> 1;
    state.y = state.height >> 1;
    $("probe").hidden = true;
    $("value").textContent = "Click the picture, or focus it and use the arrow keys, to read a value.";
    drawDepth();
    drawCloud();
    const seconds = ((performance.now() - start) / 1000).toFixed(2);
    say(`${state.name}: ${state.width} x ${state.height} pixels, ${meaning()}, ${seconds} s.${note}`);
  } catch (error) {
    if (number === state.number) say(error.message, true);
  }
}

// A map from its npy file, which is much faster to read than JSON, and the headers that describe it.
function readMap(headers, file) {
  const get = (name) => headers.get(`x-depth-${name}`);
  state.facts = { kind: get("kind"), unit: get("unit"), camera: get("camera"), intrinsics: get("intrinsics")?.split(",").map(Number) };
  [state.width, state.height] = get("size").split("x").map(Number);
  state.values = new Float32Array(file, 10 + new DataView(file).getUint16(8, true));
  state.near = nearness();
}

function meaning() {
  const { kind, unit } = state.facts;
  if (unit === "m") return "depth in metres";
  if (unit === "1/m") return "disparity in 1/m";
  return kind === "depth" ? "depth without a unit" : "disparity without a unit (large is near)";
}

// ---------------------------------------------------------------------------- the map

// Returns a note for the user if the photo cannot be shown.
async function drawPhoto() {
  const canvas = $("photo");
  canvas.width = state.width;
  canvas.height = state.height;
  $("compare").style.maxWidth = `${(75 * state.width) / state.height}vh`; // all of it on the screen
  const context = canvas.getContext("2d", { willReadFrequently: true });
  try {
    const image = await createImageBitmap(state.photo, { imageOrientation: "from-image" });
    context.drawImage(image, 0, 0, state.width, state.height);
    image.close();
    return "";
  } catch { // for example HEIC
    context.fillStyle = "#888";
    context.fillRect(0, 0, state.width, state.height);
    return " This browser cannot show photos of this format; the depth is complete.";
  }
}

// Disparity from the far (0) to the near (1) end of the map; NaN where it is unknown.
function nearness() {
  const isDepth = state.facts.kind === "depth";
  const out = new Float32Array(state.values.length);
  let low = Infinity, high = -Infinity;
  for (let i = 0; i < out.length; i++) {
    const v = state.values[i];
    const d = isDepth ? (v > 0 ? 1 / v : NaN) : v;
    out[i] = d;
    if (Number.isFinite(d)) {
      if (d < low) low = d;
      if (d > high) high = d;
    }
  }
  state.ends = [low, high];
  const scale = high > low ? 1 / (high - low) : 0;
  for (let i = 0; i < out.length; i++) out[i] = (out[i] - low) * scale;
  return out;
}

function drawDepth() {
  const canvas = $("depth");
  canvas.width = state.width;
  canvas.height = state.height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(state.width, state.height);
  const palette = state.rows[$("palette").value];
  const low = $("low").value / 100, high = Math.max($("high").value / 100, low + 0.005);
  for (let i = 0; i < state.near.length; i++) {
    const t = Math.min(1, Math.max(0, (state.near[i] - low) / (high - low)));
    image.data[4 * i + 3] = 255;
    if (Number.isNaN(t)) continue;
    const row = Math.round(t * 255);
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = palette[3 * row + c];
  }
  context.putImageData(image, 0, 0);
  const strip = $("legend").getContext("2d"), line = strip.createImageData(256, 12);
  for (let i = 0; i < 256 * 12; i++) {
    for (let c = 0; c < 3; c++) line.data[4 * i + c] = palette[3 * (i % 256) + c];
    line.data[4 * i + 3] = 255;
  }
  strip.putImageData(line, 0, 0);
  const { unit } = state.facts;
  $("range").textContent = !Number.isFinite(state.ends[0]) ? "no values" : `far ${show(valueAt(low), unit)}, near ${show(valueAt(high), unit)}`;
  $("legend").setAttribute("aria-label", `Colours from far to near: ${$("range").textContent}`);
}

// The value whose colour is at a place of the palette, from the far (0) to the near (1) end.
function valueAt(place) {
  const [far, near] = state.ends, value = far + place * (near - far);
  return state.facts.kind === "depth" ? 1 / value : value;
}

function show(value, unit) {
  return `${Number(value).toPrecision(4)}${unit ? ` ${unit}` : ""}`;
}

function split() {
  const at = $("split").value;
  $("depth").style.clipPath = `inset(0 0 0 ${at}%)`;
  $("divider").style.left = `${at}%`;
}

function readValue(x, y) {
  if (!state.values) return;
  state.x = Math.min(state.width - 1, Math.max(0, x));
  state.y = Math.min(state.height - 1, Math.max(0, y));
  const value = state.values[state.y * state.width + state.x];
  const what = state.facts.kind === "depth" ? "depth" : "disparity";
  const text = Number.isFinite(value) ? show(value, state.facts.unit) : "unknown";
  $("value").textContent = `Column ${state.x}, row ${state.y}: ${what} ${text}`;
  $("probe").hidden = false;
  $("probe").style.left = `${(100 * (state.x + 0.5)) / state.width}%`;
  $("probe").style.top = `${(100 * (state.y + 0.5)) / state.height}%`;
}

// ---------------------------------------------------------------------------- the points

function drawCloud() {
  if ($("view-cloud").hidden || !state.values) return;
  cloud ??= new Cloud($("cloud"));
  if (!cloud.works) {
    $("cloud-note").textContent = "This browser has no WebGL. The PLY download holds the points.";
    return;
  }
  const photo = $("photo").getContext("2d").getImageData(0, 0, state.width, state.height).data;
  const count = cloud.load(state.values, state.near, photo, state.width, state.height, state.facts);
  const camera = { given: "given", fov: "from the field of view", exif: "from EXIF data", assumed: "assumed" };
  $("cloud-note").textContent = `${count} points. Camera: ${camera[state.facts.camera] || "unknown"}.` +
    (state.facts.unit ? "" : " The scale is unknown; the farthest pixel is shown 10 times as far as the nearest.");
}

function choose(name) {
  for (const each of ["map", "cloud"]) {
    const chosen = each === name;
    $(`view-${each}`).hidden = !chosen;
    $(`tab-${each}`).setAttribute("aria-selected", chosen);
    $(`tab-${each}`).tabIndex = chosen ? 0 : -1;
  }
  drawCloud();
}

// ---------------------------------------------------------------------------- photos

function take(blob, name) {
  if (!blob) return;
  if (!blob.size) {
    say(`${name}: this file is empty.`, true);
    return;
  }
  state.photo = blob;
  state.name = name || "photo";
  predict();
}

async function openCamera() {
  try {
    $("video").srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    await $("video").play();
    $("live").hidden = false;
    $("shoot").focus();
  } catch (error) {
    const reasons = {
      NotAllowedError: "the browser refuses it. Allow the camera for this page in the browser's settings",
      NotFoundError: "there is none",
      NotReadableError: "another program uses it",
      TypeError: "browsers allow it only on https and on localhost",
    };
    say(`The camera cannot be used: ${reasons[error.name] || error.message}. You can choose a photo instead.`, true);
  }
}

function closeCamera() {
  $("video").srcObject?.getTracks().forEach((track) => track.stop());
  $("video").srcObject = null;
  $("live").hidden = true;
}

function shoot() {
  const canvas = document.createElement("canvas");
  canvas.width = $("video").videoWidth;
  canvas.height = $("video").videoHeight;
  canvas.getContext("2d").drawImage($("video"), 0, 0);
  closeCamera();
  canvas.toBlob((blob) => take(blob, "camera"), "image/jpeg", 0.95);
}

async function download(format, button) {
  button.disabled = true;
  try {
    const answer = await request(format);
    const suffix = /filename="depth(\.\w+)"/.exec(answer.headers.get("content-disposition"))[1];
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await answer.blob());
    link.download = `${state.name.replace(/\.\w+$/, "")}_${format}${suffix}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  } catch (error) {
    say(error.message, true);
  } finally {
    button.disabled = false;
  }
}

// ---------------------------------------------------------------------------- the page

async function fill() {
  const about = await (await fetch("page/about.json")).json();
  for (const { id, license, kind, unit } of about.models) {
    $("model").add(new Option(id, id));
    const row = $("models").insertRow();
    const gives = unit ? `depth in ${unit === "m" ? "metres" : unit}` : kind ? `${kind}, relative` : "see its page";
    for (const text of [id, gives, license || "see its page"]) row.insertCell().textContent = text;
  }
  for (const [name, colors] of Object.entries(about.palettes)) {
    state.rows[name] = Uint8Array.from(atob(colors), (c) => c.charCodeAt(0));
    $("palette").add(new Option(name, name));
  }
  for (const name of about.samples) {
    const button = document.createElement("button");
    button.type = "button";
    button.innerHTML = `<img alt="Sample photo: ${name}">`;
    button.firstChild.src = `page/samples/${name}.jpg`;
    button.onclick = async () => take(await (await fetch(`page/samples/${name}.jpg`)).blob(), `${name}.jpg`);
    $("samples").append(button);
  }
  const license = () => {
    const model = about.models.find((each) => each.id === $("model").value);
    $("license").textContent = model.license ? `License: ${model.license}` : "";
  };
  $("model").onchange = () => { license(); predict(); };
  license();
  for (const [format, label] of FORMATS) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = label;
    button.id = `download-${format}`;
    button.onclick = () => download(format, button);
    $("downloads").append(button);
  }
}

$("file").onchange = () => take($("file").files[0], $("file").files[0]?.name);
$("camera").onclick = openCamera;
$("stop").onclick = closeCamera;
$("shoot").onclick = shoot;
$("split").oninput = split;
$("palette").onchange = drawDepth;
$("low").oninput = $("high").oninput = drawDepth;
$("reset").onclick = () => { $("low").value = 0; $("high").value = 100; drawDepth(); };
$("fov").onchange = predict;
$("tab-map").onclick = () => choose("map");
$("tab-cloud").onclick = () => choose("cloud");
document.querySelector("[role=tablist]").onkeydown = (event) => {
  if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
  const other = $("view-map").hidden ? "map" : "cloud";
  choose(other);
  $(`tab-${other}`).focus();
};
const compare = $("compare");
compare.tabIndex = 0;
compare.setAttribute("role", "application");
compare.setAttribute("aria-label", "Photo and depth. Arrow keys move the point whose value is read.");
compare.onclick = (event) => {
  const box = compare.getBoundingClientRect();
  readValue(
    Math.floor(((event.clientX - box.left) / box.width) * state.width),
    Math.floor(((event.clientY - box.top) / box.height) * state.height),
  );
};
compare.onkeydown = (event) => {
  const step = event.shiftKey ? 1 : 10;
  const move = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
  if (!move) return;
  event.preventDefault();
  readValue(state.x + move[0], state.y + move[1]);
};
document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  const file = event.dataTransfer.files[0];
  if (file) take(file, file.name);
  else say("Drop a picture file; a link to a picture is not fetched.", true);
});
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
  if (file) take(file, file.name);
  else if (event.target !== $("fov")) say("The clipboard has no picture.", true);
});
split();
fill().catch(() => say("The page cannot reach its server. Is `dafast demo` still running?", true));
