// The clips: what is being made and what was. Each keeps its element, so that nothing jumps or stops playing.

import * as api from "./api.js";
import * as composer from "./composer.js";

const gallery = document.getElementById("gallery");
const template = document.getElementById("clip");
const NAMES = { num_frames: "frames", fps: "frames a second", generate_sound: "sound", recipe: "sampling", negative_prompt: "to avoid" };
const open = (video) => video.status === "queued" || video.status === "in_progress";

const shown = new Map();
let listening = null;

// Show ``videos``, newest first; those of this page that are gone go. Whether anything is still being made.
export function show(videos, whole) {
  const ids = new Set(videos.map((v) => v.id));
  if (whole) for (const [id, clip] of shown) if (!ids.has(id)) { clip.element.remove(); shown.delete(id); }
  videos.forEach((video, place) => { update(video); shown.get(video.id).place = place; });
  const order = [...shown.values()].sort((a, b) => a.place - b.place);
  order.forEach((clip, place) => {
    if (gallery.children[place] !== clip.element) gallery.insertBefore(clip.element, gallery.children[place] ?? null);
  });
  document.getElementById("empty").hidden = shown.size > 0;
  listen([...shown.values()].map((c) => c.video).find((v) => v.status === "in_progress"));
  return [...shown.values()].some((c) => open(c.video));
}

export const last = () => gallery.lastElementChild?.dataset.id;

function update(video) {
  let clip = shown.get(video.id);
  if (!clip) {
    clip = { element: template.content.firstElementChild.cloneNode(true) };
    clip.element.dataset.id = video.id;
    clip.element.addEventListener("click", (event) => act(video.id, event.target.dataset.do, event));
    shown.set(video.id, clip);
    settle(clip, video);
  }
  clip.video = video;
  const part = (name) => clip.element.querySelector(name);
  part(".progress").hidden = !open(video);
  clip.element.dataset.status = video.status;
  part("progress").value = video.progress;
  part(".phase").textContent = phase(video);
  if (video.status === "completed" && part("video").hidden) showVideo(clip);
  part(".notices").textContent = video.notices.join("\n");
  part(".about .problem").hidden = video.status !== "failed";
  part(".about .problem").textContent = video.error?.message ?? "";
  for (const button of clip.element.querySelectorAll("[data-do]")) {
    button.hidden = !actions(video).includes(button.dataset.do);
  }
}

// What does not change while a clip is made.
function settle(clip, video) {
  const part = (name) => clip.element.querySelector(name);
  const { width, height } = video.request;
  part(".screen").style.aspectRatio = `${width} / ${Math.min(height, width * 1.25)}`;
  part(".prompt").textContent = video.prompt;
  part(".prompt").title = video.prompt;
  const sound = video.request.generate_sound ? "with sound" : "silent";
  const facts = [`${Number(video.seconds).toFixed(1)} s`, `${width} × ${height}`, sound, `seed ${video.request.seed}`];
  part(".facts").textContent = facts.map((fact) => fact.replaceAll(" ", "\u00a0")).join(" · "); // lines break between them
  const skip = new Set(["prompt", "size", "images", "loras", "width", "height", "seconds"]);
  const rows = Object.entries(video.request).filter(([name, value]) => value !== null && !skip.has(name));
  if (video.request.images.length) rows.push(["first picture", "yes"]);
  rows.push(...Object.entries(video.request.loras).map(([name, strength]) => [`LoRA ${name}`, strength]));
  rows.push(["made", new Date(video.created_at * 1000).toLocaleString()]);
  for (const [name, value] of rows) {
    const term = document.createElement("dt"); term.textContent = NAMES[name] ?? name;
    const text = document.createElement("dd"); text.textContent = value === true ? "yes" : value === false ? "no" : value;
    part("dl").append(term, text);
  }
  part("video").setAttribute("aria-label", `Clip: ${video.prompt}`);
}

function showVideo(clip) {
  const player = clip.element.querySelector("video");
  player.poster = api.content(clip.video.id, "thumbnail");
  player.src = api.content(clip.video.id);
  player.hidden = false;
  clip.element.querySelector(".preview").hidden = true;
}

function phase(video) {
  if (video.status === "queued") return video.place > 0 ? `Waiting, ${video.place} ${video.place > 1 ? "clips" : "clip"} ahead` : "Waiting";
  const time = video.seconds_left == null ? "" : ` · about ${duration(video.seconds_left)} left`;
  return `${video.phase || "starting"} · ${video.progress} %${time}`;
}

const duration = (s) => (s < 90 ? `${Math.max(1, Math.round(s))} s` : `${Math.round(s / 60)} min`);

function actions(video) {
  if (open(video)) return ["cancel"];
  if (video.status === "failed") return ["again", "vary", "delete"];
  return ["again", "vary", "last", "download", "delete"];
}

async function act(id, what, event) {
  const clip = shown.get(id);
  const video = clip.video;
  try {
    if (what === "again") notify(await api.remix(id, { prompt: video.prompt, seed: Math.floor(Math.random() * 2 ** 32) }));
    if (what === "vary") composer.take(video.request);
    if (what === "last") composer.usePicture(await lastFrame(clip));
    if (what === "cancel") notify(await api.cancel(id));
    if (what === "download") { event.target.href = api.content(id); event.target.download = `${name(video)}.mp4`; }
    if (what === "delete" && confirm("Delete this clip? Its file goes too.")) {
      await api.remove(id);
      const next = clip.element.nextElementSibling ?? clip.element.previousElementSibling;
      clip.element.remove(); shown.delete(id);
      (next?.querySelector("button:not([hidden])") ?? document.getElementById("prompt")).focus();
      document.getElementById("empty").hidden = shown.size > 0;
    }
  } catch (problem) {
    const line = clip.element.querySelector(".about .problem");
    line.hidden = false; line.textContent = problem.message;
  }
}

const name = (video) => video.prompt.toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, 40).replace(/^-|-$/g, "") || video.id;
const notify = (video) => document.dispatchEvent(new CustomEvent("made", { detail: video }));

async function lastFrame(clip) {
  const player = clip.element.querySelector("video");
  player.pause();
  await new Promise((done) => {
    player.addEventListener("seeked", done, { once: true });
    player.currentTime = Math.max(0, player.duration - 0.01);
  });
  const canvas = Object.assign(document.createElement("canvas"), { width: player.videoWidth, height: player.videoHeight });
  canvas.getContext("2d").drawImage(player, 0, 0);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
  return new File([blob], "last-frame.png", { type: "image/png" });
}

// Previews and progress of the one clip that is being made.
function listen(video) {
  if (listening && listening.id === video?.id) return;
  listening?.source.close();
  listening = null;
  if (!video) return;
  const source = api.events(video.id);
  listening = { id: video.id, source };
  source.addEventListener("video", (event) => { const now = JSON.parse(event.data); if (now.status === "in_progress") update({ ...now, place: 0 }); });
  source.addEventListener("preview", (event) => {
    const clip = shown.get(video.id);
    if (!clip || clip.video.status !== "in_progress") return;
    const image = clip.element.querySelector(".preview");
    image.src = api.preview(video.id, JSON.parse(event.data).number);
    image.hidden = false;
    image.alt = "The clip so far";
  });
  source.addEventListener("error", () => { source.close(); if (listening?.source === source) listening = null; });
}
