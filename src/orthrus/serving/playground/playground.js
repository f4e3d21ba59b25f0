// The page around the answers: settings, chat, the race between plain decoding and drafting, and the composer.
import { Answer, call, element, installTip } from "./answer.js";

const $ = (id) => document.getElementById(id);
const view = { racing: false, running: null, turns: [] };

// --- Settings: kept in this browser, the API key in this tab only.

const DEFAULTS = { model: "", system: "", temperature: "0", top_p: "1", max_tokens: "512", seed: "" };
const fields = $("settings").querySelector("form").elements;

function settings() {
  return Object.fromEntries(Object.keys(DEFAULTS).map((name) => [name, fields[name].value.trim()]));
}

function fillSettings(values) {
  for (const name of Object.keys(DEFAULTS)) if (name !== "model") fields[name].value = values[name] ?? DEFAULTS[name];
}

function keepSettings() {
  localStorage.setItem("orthrus.settings", JSON.stringify(settings()));
  sessionStorage.setItem("orthrus.key", fields.key.value);
  loadModels();
}

function openSettings(field) {
  $("settings").showModal();
  if (field) fields[field].focus();
}

function savedSettings() {
  try {
    return JSON.parse(localStorage.getItem("orthrus.settings")) ?? {};
  } catch {
    return {};
  }
}

/** Fill the list of models. Tells about a server that is gone or wants a key before anything is typed. */
async function loadModels() {
  const notice = document.querySelector("main > .problem");
  try {
    const { data } = await (await call("v1/models", { key: fields.key.value })).json();
    const chosen = fields.model.value || savedSettings().model;
    fields.model.replaceChildren(...data.map(({ id }) => new Option(id, id, false, id === chosen)));
    $("model-name").textContent = fields.model.value;
    notice?.remove();
  } catch (problem) {
    notice?.remove();
    document.querySelector("main").prepend(problemBox(problem, loadModels));
  }
}

function requestFor(messages, signal, extra = {}) {
  const { model, system, temperature, top_p, max_tokens, seed } = settings();
  const body = { model, messages: system ? [{ role: "system", content: system }, ...messages] : messages };
  body.temperature = Number(temperature);
  body.top_p = Number(top_p);
  body.max_tokens = Number(max_tokens);
  if (seed) body.seed = Number(seed);
  Object.assign(body, { stream: true, stream_options: { include_usage: true, include_drafts: true } }, extra);
  return { key: fields.key.value, body, signal };
}

// --- One job at a time, and problems as people need them.

/** Run a job whose signal the stop button aborts. `onProblem` gets whatever else ends it early. */
async function run(job, onProblem) {
  view.running = new AbortController();
  document.body.classList.add("busy");
  $("send").setAttribute("aria-label", "Stop");
  try {
    await job(view.running.signal);
  } catch (error) {
    view.running.abort(); // what runs beside it
    if (error.name !== "AbortError") onProblem(error);
  } finally {
    view.running = null;
    document.body.classList.remove("busy");
    $("send").setAttribute("aria-label", "Send");
  }
}

function problemBox(problem, again) {
  const title = element("strong", "", problem.title ?? "Something went wrong in this page.");
  const keyless = problem.status === 401;
  const button = element("button", "", keyless ? "Enter the key" : "Try again");
  const box = element("div", "problem", "", element("p", "", "", title, ` ${problem.message}`), button);
  box.setAttribute("role", "alert");
  button.addEventListener("click", () => {
    if (keyless) return openSettings("key");
    box.remove();
    again();
  });
  if (problem.wait) countDown(button, problem.wait);
  return box;
}

function countDown(button, seconds) {
  button.disabled = seconds > 0;
  button.textContent = seconds > 0 ? `Try again in ${seconds} s` : "Try again";
  if (seconds > 0) setTimeout(() => countDown(button, seconds - 1), 1000);
}

// --- Chat.

async function ask(text) {
  if (view.turns.at(-1)?.role === "user") {
    view.turns.pop(); // it got no answer
    $("turns").querySelectorAll(".asked:last-of-type, article:last-of-type").forEach((old) => old.remove());
  }
  view.turns.push({ role: "user", content: text });
  $("welcome").hidden = true;
  $("turns").append(element("div", "asked", text));
  await reply();
}

async function reply() {
  document.querySelectorAll(".again").forEach((button) => button.remove());
  const article = $("turns").appendChild(element("article"));
  const answer = new Answer(article);
  const again = () => {
    if (view.turns.at(-1).role === "assistant") view.turns.pop();
    article.remove();
    reply();
  };
  answer.changed = followEnd;
  article.scrollIntoView({ block: "nearest" });
  const failed = (problem) => article.append(problemBox(problem, again));
  await run((signal) => answer.decode(requestFor(view.turns, signal)), failed);
  if (answer.content) {
    view.turns.push({ role: "assistant", content: answer.content });
    $("announce").textContent = `Answer: ${answer.content}`;
  }
  const button = element("button", "quiet again", "Regenerate");
  button.addEventListener("click", again);
  if (!article.querySelector(".problem")) answer.figures.append(button);
  followEnd();
}

function followEnd() {
  const main = document.querySelector("main");
  if (main.scrollHeight - main.scrollTop - main.clientHeight < 200) main.scrollTop = main.scrollHeight;
}

function newChat() {
  view.running?.abort();
  view.turns = [];
  $("turns").replaceChildren();
  $("welcome").hidden = false;
  show(false);
}

// --- The race: plain decoding live, then Orthrus live beside a replay of plain's measured times.

async function race(prompt) {
  const sampled = Number(settings().temperature) > 0;
  const seed = Number(settings().seed || Math.floor(Math.random() * 2 ** 32));
  const request = (signal, drafts) =>
    requestFor([{ role: "user", content: prompt }], signal, { ...(sampled && { seed }), drafts });
  let plain = lane("plain", "live", Number(settings().max_tokens));
  const orthrus = lane("orthrus", "next", plain.total);
  $("verdict").replaceChildren(element("p", "", prompt));
  const failed = (problem) => $("verdict").append(problemBox(problem, () => race(prompt)));
  await run(async (signal) => {
    const heard = await plain.decode(request(signal, false));
    const { first, tokens } = plain;
    plain = lane("plain", "replay", tokens);
    Object.assign(orthrus, { total: tokens, label: "live" });
    const begun = new Promise((resolve) => (orthrus.begun = resolve));
    const replayed = begun.then(() => replay(heard, first, plain, signal));
    await Promise.all([orthrus.decode(request(signal, true)), replayed]);
    showVerdict(plain, orthrus, sampled ? ` Both used the seed ${seed}.` : "");
  }, failed);
  plain.end();
  orthrus.end();
}

/** A fresh answer in a lane. `total` is the number of tokens at which its bar is full. */
function lane(name, label, total) {
  const host = $(`lane-${name}`);
  const [note, bar] = [host.querySelector(".note"), host.querySelector(".bar")];
  host.querySelectorAll(".text, .rhythm, .figures").forEach((old) => old.remove());
  const answer = Object.assign(new Answer(host), { label, total });
  answer.changed = () => {
    bar.style.width = `${Math.min(100, (100 * answer.tokens) / answer.total)}%`;
    note.textContent = `${answer.label} · ${answer.seconds.toFixed(2)} s`;
    answer.text.scrollTop = answer.text.scrollHeight; // lanes of a phone are short
  };
  answer.changed();
  return answer;
}

async function replay(heard, first, answer, signal) {
  const shift = performance.now() / 1000 - first;
  for (const { chunk, now } of heard) {
    await new Promise((resolve) => setTimeout(resolve, (now + shift) * 1000 - performance.now()));
    signal.throwIfAborted();
    answer.add(chunk, now);
  }
  answer.end();
}

function showVerdict(plain, orthrus, seed) {
  const equal = plain.whole === orthrus.whole;
  const [texts, others] = [[...plain.whole], [...orthrus.whole]];
  let same = 0;
  while (same < texts.length && texts[same] === others[same]) same += 1;
  const told = equal ? `Identical: all ${same} characters` : `The texts differ from character ${same + 1} on`;
  const ratio = plain.speed ? orthrus.speed / plain.speed : 0;
  const figures =
    `Plain: ${plain.speed.toFixed(0)} tokens/s, ${plain.tokensPerPass.toFixed(2)} per pass.` +
    ` Orthrus: ${orthrus.speed.toFixed(0)} tokens/s, ${orthrus.tokensPerPass.toFixed(2)} per pass.${seed}`;
  $("verdict").replaceChildren(
    element("p", "headline", ratio ? `${ratio.toFixed(2)} times as fast` : "Too short to compare speeds"),
    element("p", equal ? "badge" : "badge bad", equal ? `✓ ${told}` : told),
    element("p", "muted", figures),
  );
}

// --- Composer, views, keyboard, colours.

function show(racing) {
  view.racing = racing;
  [$("chat").hidden, $("race").hidden] = [racing, !racing];
  for (const [tab, chosen] of [[$("tab-chat"), !racing], [$("tab-race"), racing]]) {
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
  }
  $("prompt").placeholder = racing ? "A prompt to race on" : "Ask something";
  history.replaceState(null, "", racing ? "#race" : location.pathname);
}

function send(text) {
  if (view.running || !text.trim()) return;
  $("prompt").value = "";
  fitPrompt();
  (view.racing ? race : ask)(text.trim());
}

function fitPrompt() {
  $("prompt").style.height = "auto";
  $("prompt").style.height = `${$("prompt").scrollHeight}px`;
}

function setTheme(theme) {
  const next = { auto: "light", light: "dark", dark: "auto" }[theme] ?? "light";
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("orthrus.theme", theme);
  $("theme").title = `Colour scheme: ${theme === "auto" ? "as the system" : theme}`;
  $("theme").onclick = () => setTheme(next);
}

function install() {
  fillSettings(savedSettings());
  fields.key.value = sessionStorage.getItem("orthrus.key") ?? "";
  setTheme(localStorage.getItem("orthrus.theme") ?? "auto");
  installTip($("tip"));
  show(location.hash === "#race");
  $("settings").addEventListener("close", keepSettings);
  $("reset-settings").addEventListener("click", () => fillSettings({}));
  $("open-settings").addEventListener("click", () => openSettings());
  $("new-chat").addEventListener("click", newChat);
  $("colours").addEventListener("change", () => document.body.classList.toggle("no-colours", !$("colours").checked));
  $("welcome").addEventListener("click", (event) => event.target.closest("button") && send(event.target.textContent));
  $("prompt").addEventListener("input", fitPrompt);
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (view.running) view.running.abort();
    else send($("prompt").value);
  });
  for (const tab of [$("tab-chat"), $("tab-race")]) {
    tab.addEventListener("click", () => view.running || show(tab.id === "tab-race"));
  }
  document.querySelector("nav").addEventListener("keydown", (event) => {
    if (!event.key.startsWith("Arrow") || view.running) return;
    show(!view.racing);
    document.querySelector("[role=tab][aria-selected=true]").focus();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !$("settings").open) view.running?.abort();
    if (event.target !== $("prompt") || event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send($("prompt").value);
  });
  loadModels();
}

install();
