// The API's own description, shown.

document.getElementById("example").textContent = `from openai import OpenAI

client = OpenAI(base_url="${location.origin}/v1", api_key="unused")
video = client.videos.create_and_poll(
    prompt="a red ball bounces on a blue floor", seconds="4"
)
client.videos.download_content(video.id).write_to_file("ball.mp4")`;

// A sentence whose names stand between double backticks, as nodes.
const prose = (text) => text.split("``").map((part, place) => (place % 2 ? code(part) : part));
const code = (text) => Object.assign(document.createElement("code"), { textContent: text });

const spec = await (await fetch("openapi.json")).json();
const operations = document.getElementById("operations");
for (const [path, methods] of Object.entries(spec.paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    const title = document.createElement("h2");
    title.append(code(`${method.toUpperCase()} ${path}`));
    const about = document.createElement("p");
    about.append(...prose(operation.description));
    operations.append(title, about);
  }
}
for (const [name, field] of Object.entries(spec.components.schemas.VideoRequest.properties)) {
  const term = document.createElement("dt");
  term.textContent = name;
  const text = document.createElement("dd");
  text.append(...prose(field.description));
  document.getElementById("fields").append(term, text);
}
