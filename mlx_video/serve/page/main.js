// Ties the form, the clips and the server together: asks what there is, and asks again while something is being made.

import * as api from "./api.js";
import * as composer from "./composer.js";
import * as gallery from "./gallery.js";

const state = document.getElementById("state");
let timer = 0;
let older = [];

async function refresh() {
  clearTimeout(timer);
  let wait = 5000;
  try {
    const [page, { data: models }, health] = await Promise.all([api.list(), api.models(), api.health()]);
    composer.offer(models);
    const busy = gallery.show([...page.data, ...older], older.length === 0 || !page.has_more);
    document.getElementById("older").hidden = !page.has_more || older.done;
    state.textContent = health.trouble || (models.length ? describe(models[0], health) : "Opening the model…");
    wait = busy || !models.length ? 1000 : 5000;
  } catch (problem) {
    if (problem.status === 401) return askKey();
    state.textContent = problem.message;
  }
  timer = setTimeout(refresh, wait);
}

const describe = (model, health) =>
  health.queued > 1 ? `${model.id} · ${health.queued} clips in the queue` : health.queued ? `${model.id} · making a clip` : `${model.id} · ready`;

document.getElementById("older").addEventListener("click", async () => {
  const page = await api.list(gallery.last());
  older = [...older, ...page.data];
  older.done = !page.has_more;
  refresh();
});

function askKey() {
  const dialog = document.getElementById("key-dialog");
  if (!dialog.open) dialog.showModal();
}

document.getElementById("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    await api.openWith(document.getElementById("key").value);
    document.getElementById("key-dialog").close();
    refresh();
  } catch (problem) {
    document.getElementById("key-problem").textContent = problem.message;
  }
});

composer.setUp(() => refresh());
document.addEventListener("made", () => refresh());
refresh();
