// The form: what to make. Knows the chosen model's grid and defaults, not the clips there are.

import * as api from "./api.js";

const $ = (id) => document.getElementById(id);
// Prompts for an empty page: the demo model knows a small world, the others ours.
const IDEAS = {
  "ltx-2-tiny": ["a red ball bounces on a blue floor", "a big yellow moon rises at night", "a green star spins on a meadow"],
  other: ["A lighthouse in a storm, waves breaking on the rocks", "A potter shapes a bowl on a turning wheel, clay whispering under wet hands", "Rain on a tin roof at dusk, a cat watching from the window"],
};
const SHAPES = [["wide", 16 / 9], ["landscape", 3 / 2], ["square", 1], ["portrait", 2 / 3], ["tall", 9 / 16]];

let models = [];
let picture = null;
let estimateTimer = 0;
let estimateNumber = 0;

export function setUp(onMade) {
  $("composer").addEventListener("submit", async (event) => {
    event.preventDefault();
    $("problem").textContent = "";
    $("make").disabled = true;
    try {
      onMade(await api.create(wanted(), picture));
    } catch (problem) {
      clearTimeout(estimateTimer); // which would say the same
      $("estimate").textContent = "";
      estimateNumber++;
      $("problem").textContent = problem.message;
    }
    $("make").disabled = false;
  });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.metaKey || event.ctrlKey)) $("composer").requestSubmit();
  });
  $("model").addEventListener("change", showModel);
  $("size").addEventListener("change", () => {
    const [width, height] = $("size").value.split("x");
    if (height) { $("width").value = width; $("height").value = height; }
  });
  for (const side of ["width", "height"]) $(side).addEventListener("input", matchSize);
  $("recipe").addEventListener("change", showRecipe);
  for (const name of ["input", "change"]) $("composer").addEventListener(name, () => { $("problem").textContent = ""; askEstimate(); });
  setUpPicture();
}

export function offer(found) {
  if (JSON.stringify(found) === JSON.stringify(models)) return;
  models = found;
  $("model").replaceChildren(...models.map((m) => new Option(m.id, m.id)));
  $("model-field").hidden = models.length < 2;
  showModel();
}

// The settings of a clip that was made, to be changed.
export function take(request) {
  $("prompt").value = request.prompt;
  $("model").value = request.model;
  showModel();
  for (const name of ["width", "height", "fps"]) $(name).value = request[name];
  $("seconds").value = request.seconds;
  $("sound").checked = request.generate_sound;
  $("recipe").value = request.recipe;
  $("steps").value = request.steps ?? "";
  $("negative").value = request.negative_prompt ?? "";
  $("seed").value = "";
  matchSize();
  showRecipe();
  askEstimate();
  $("prompt").focus();
}

export function usePicture(file) {
  picture = file;
  const shown = $("picture-shown");
  if (shown.src) URL.revokeObjectURL(shown.src);
  shown.hidden = !file;
  shown.alt = file ? "The picture that the clip begins with" : "";
  if (file) shown.src = URL.createObjectURL(file); else shown.removeAttribute("src");
  $("picture-remove").hidden = !file;
  $("drop").querySelector("label").hidden = Boolean(file);
  if (!file) $("picture").value = "";
}

function wanted() {
  const body = { prompt: $("prompt").value, generate_sound: $("sound").checked };
  if (models.length) body.model = $("model").value;
  for (const name of ["width", "height", "fps", "seed", "steps", "seconds"]) {
    if ($(name).value !== "" && !$(name).closest("[hidden]")) body[name] = Number($(name).value);
  }
  if ($("recipe").value) body.recipe = $("recipe").value;
  if ($("negative").value.trim() && !$("negative-field").hidden) body.negative_prompt = $("negative").value;
  const loras = [...$("loras").querySelectorAll("input")].filter((i) => Number(i.value));
  if (loras.length) body.loras = Object.fromEntries(loras.map((i) => [i.name, Number(i.value)]));
  return body;
}

const chosen = () => models.find((m) => m.id === $("model").value);

function showModel() {
  const model = chosen();
  if (!model) return;
  const area = model.width * model.height;
  const sizes = new Map([[`${model.width}x${model.height}`, ""]]);
  for (const [name, ratio] of SHAPES) {
    const width = snap(Math.sqrt(area * ratio), model.width_step);
    const height = snap(Math.sqrt(area / ratio), model.height_step);
    if (!sizes.has(`${width}x${height}`)) sizes.set(`${width}x${height}`, name);
  }
  const options = [...sizes].map(([size, name]) => new Option(`${size.replace("x", " × ")} ${name}`, size));
  $("size").replaceChildren(...options, new Option("Another size", "other"));
  $("width").value = model.width; $("width").step = model.width_step;
  $("height").value = model.height; $("height").step = model.height_step;
  $("fps").value = model.fps;
  $("seconds").value = (model.num_frames / model.fps).toFixed(1);
  $("sound").checked = model.generate_sound;
  $("recipe").replaceChildren(...model.recipes.map((r) => new Option(r, r)));
  $("recipe-field").hidden = model.recipes.length < 2;
  $("loras").hidden = !model.loras.length;
  $("loras").replaceChildren($("loras").querySelector("legend"), ...model.loras.map(loraField));
  $("ideas").replaceChildren(...(IDEAS[model.id] ?? IDEAS.other).map(idea));
  showRecipe();
  askEstimate();
}

function idea(prompt) {
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: prompt });
  button.addEventListener("click", () => { $("prompt").value = prompt; askEstimate(); $("make").focus(); });
  const row = document.createElement("li");
  row.append(button);
  return row;
}

function loraField(name) {
  const label = document.createElement("label");
  const input = Object.assign(document.createElement("input"), { type: "number", name, step: 0.1, min: -4, max: 4, value: 0 });
  label.append(`${name}, strength`, input);
  return label;
}

function showRecipe() {
  const guided = $("recipe").value !== "distilled";
  $("steps-field").hidden = $("negative-field").hidden = !guided;
}

function matchSize() {
  const size = `${$("width").value}x${$("height").value}`;
  $("size").value = [...$("size").options].some((o) => o.value === size) ? size : "other";
}

const snap = (value, step) => Math.max(1, Math.round(value / step)) * step;

function askEstimate() {
  clearTimeout(estimateTimer);
  const number = ++estimateNumber;
  estimateTimer = setTimeout(async () => {
    if (!models.length) return;
    $("estimate").textContent = "Working out the memory…";
    let text = "", refused = false;
    try {
      const body = wanted();
      const found = await api.estimate({ ...body, prompt: body.prompt.trim() || "a clip" });
      const gigabytes = (bytes) => (bytes / 1e9).toFixed(bytes < 1e10 ? 1 : 0);
      refused = Boolean(found.refusal);
      text = found.refusal || `Takes up to ${gigabytes(found.peak_bytes)} GB of memory.`;
    } catch (problem) {
      text = problem.status === 400 ? problem.message : "";
      refused = true;
    }
    if (number !== estimateNumber) return;
    $("estimate").textContent = text;
    $("estimate").classList.toggle("problem", refused);
  }, 400);
}

function setUpPicture() {
  const drop = $("drop");
  const take = (files) => { const file = [...files].find((f) => f.type.startsWith("image/")); if (file) usePicture(file); };
  $("picture").addEventListener("change", (event) => take(event.target.files));
  $("picture-remove").addEventListener("click", () => { usePicture(null); $("picture").focus(); });
  for (const name of ["dragenter", "dragover"]) {
    drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
  }
  for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => { event.preventDefault(); take(event.dataTransfer.files); });
  document.addEventListener("paste", (event) => take(event.clipboardData.files));
}
