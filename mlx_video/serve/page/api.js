// The server's API, and errors as sentences.

export class Problem extends Error {}

async function call(path, options = {}, also = 200) {
  let answer;
  try {
    answer = await fetch(path, { credentials: "same-origin", ...options });
  } catch {
    throw new Problem("The server does not answer. Is it still running?");
  }
  if (answer.ok || answer.status === also) return answer.json();
  let message = `The server answered with status ${answer.status}.`;
  try { message = (await answer.json()).error.message; } catch { /* not ours: keep the plain sentence */ }
  const problem = new Problem(message);
  problem.status = answer.status;
  throw problem;
}

const post = (path, body) =>
  call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

export const health = () => call("health", {}, 503);  // which says that no model is open yet
export const models = () => call("v1/models");
export const list = (after) => call(`v1/videos?limit=24${after ? `&after=${encodeURIComponent(after)}` : ""}`);
export const remix = (id, body) => post(`v1/videos/${id}/remix`, body);
export const cancel = (id) => post(`v1/videos/${id}/cancel`, {});
export const remove = (id) => call(`v1/videos/${id}`, { method: "DELETE" });
export const estimate = (body) => post("v1/estimates", body);
export const openWith = (key) => post("session", { key });
export const content = (id, variant = "video") => `v1/videos/${id}/content?variant=${variant}`;
export const preview = (id, number) => `v1/videos/${id}/preview?n=${number}`;
export const events = (id) => new EventSource(`v1/videos/${id}/events`);

export function create(body, picture) {
  if (!picture) return post("v1/videos", body);
  const form = new FormData();
  for (const [name, value] of Object.entries(body)) {
    form.append(name, typeof value === "object" ? JSON.stringify(value) : value);
  }
  form.append("input_reference", picture, picture.name || "picture.png");
  return call("v1/videos", { method: "POST", body: form });
}
