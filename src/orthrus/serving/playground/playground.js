// The page around the answers: composer, views, keyboard, colours.
import { ask, installChat, openChat } from "./chat.js";
import { race } from "./race.js";
import { isRunning, stop } from "./run.js";
import { installSettings } from "./settings.js";
import { installTip } from "./tip.js";

const $ = (id) => document.getElementById(id);
let racing = false;

function show(race) {
  racing = race;
  [$("chat").hidden, $("race").hidden] = [racing, !racing];
  for (const [tab, chosen] of [[$("tab-chat"), !racing], [$("tab-race"), racing]]) {
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
  }
  $("prompt").placeholder = racing ? "A prompt to race on" : "Ask something";
  history.replaceState(null, "", racing ? "#race" : location.pathname);
}

function send(text) {
  if (isRunning() || !text.trim()) return;
  $("prompt").value = "";
  fitPrompt();
  (racing ? race : ask)(text.trim());
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

/** A box of the legend that switches a class of the page off. */
function installBox(box, name) {
  box.addEventListener("change", () => document.body.classList.toggle(name, !box.checked));
}

function install() {
  setTheme(localStorage.getItem("orthrus.theme") ?? "auto");
  installTip($("tip"));
  installSettings();
  installChat();
  show(location.hash === "#race");
  installBox($("colours"), "no-colours");
  installBox($("markdown"), "raw");
  $("new-chat").addEventListener("click", () => {
    openChat();
    show(false);
    $("prompt").focus();
  });
  $("welcome").addEventListener("click", (event) => event.target.closest("button") && send(event.target.textContent));
  $("prompt").addEventListener("input", fitPrompt);
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (isRunning()) stop();
    else send($("prompt").value);
  });
  for (const tab of [$("tab-chat"), $("tab-race")]) {
    tab.addEventListener("click", () => isRunning() || show(tab.id === "tab-race"));
  }
  document.querySelector("nav").addEventListener("keydown", (event) => {
    if (!event.key.startsWith("Arrow") || isRunning()) return;
    show(!racing);
    document.querySelector("[role=tab][aria-selected=true]").focus();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !document.querySelector("dialog[open]")) stop();
    if (event.target !== $("prompt") || event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send($("prompt").value);
  });
}

install();
