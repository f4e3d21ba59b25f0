// The settings, and the requests made from them. Settings are kept in this browser, the API key in this tab only.
import { call } from "./server.js";
import { problemBox } from "./run.js";

const DEFAULTS = {
  model: "", system: "", temperature: "0", top_p: "1", top_k: "", min_p: "", repetition_penalty: "",
  frequency_penalty: "", presence_penalty: "", max_tokens: "512", seed: "",
}; // prettier-ignore
const dialog = document.getElementById("settings");
const fields = dialog.querySelector("form").elements;

export function settings() {
  return Object.fromEntries(Object.keys(DEFAULTS).map((name) => [name, fields[name].value.trim()]));
}

function fill(values) {
  for (const name of Object.keys(DEFAULTS)) if (name !== "model") fields[name].value = values[name] ?? DEFAULTS[name];
}

function keep() {
  localStorage.setItem("orthrus.settings", JSON.stringify(settings()));
  sessionStorage.setItem("orthrus.key", fields.key.value);
  loadModels();
}

function saved() {
  try {
    return JSON.parse(localStorage.getItem("orthrus.settings")) ?? {};
  } catch {
    return {};
  }
}

export function openSettings(field) {
  dialog.showModal();
  if (field) fields[field].focus();
}

/** Fill the list of models. Tells about a server that is gone or wants a key before anything is typed. */
async function loadModels() {
  const main = document.querySelector("main");
  const notice = main.querySelector(":scope > .problem");
  try {
    const { data } = await (await call("v1/models", { key: fields.key.value })).json();
    const chosen = fields.model.value || saved().model;
    fields.model.replaceChildren(...data.map(({ id }) => new Option(id, id, false, id === chosen)));
    document.getElementById("model-name").textContent = fields.model.value;
    notice?.remove();
  } catch (problem) {
    notice?.remove();
    main.prepend(problemBox(problem, loadModels, openSettings));
  }
}

/** A request for an answer, as `call` takes it. An empty field leaves the choice to the model's generation config. */
export function requestFor(messages, signal, extra = {}) {
  const { model, system, ...numbers } = settings();
  const body = { model, messages: system ? [{ role: "system", content: system }, ...messages] : messages };
  for (const [name, value] of Object.entries(numbers)) if (value) body[name] = Number(value);
  Object.assign(body, { stream: true, stream_options: { include_usage: true, include_drafts: true } }, extra);
  return { key: fields.key.value, body, signal };
}

export function installSettings() {
  fill(saved());
  fields.key.value = sessionStorage.getItem("orthrus.key") ?? "";
  dialog.addEventListener("close", keep);
  document.getElementById("reset-settings").addEventListener("click", () => fill({}));
  document.getElementById("open-settings").addEventListener("click", () => openSettings());
  loadModels();
}
