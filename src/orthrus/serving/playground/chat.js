// The chat: exchanges of a question and its answer, which can be copied, edited, repeated and deleted, and are kept.
import { Answer } from "./answer.js";
import { dropChat, keepChat, keptChats, readChat } from "./chats.js";
import { button, copyButton, element } from "./element.js";
import { isRunning, problemBox, run, stop } from "./run.js";
import { openSettings, requestFor } from "./settings.js";

const $ = (id) => document.getElementById(id);
const CURRENT = "orthrus.chat";
const newChat = () => ({ id: crypto.getRandomValues(new Uint32Array(2)).join("-"), exchanges: [] });
let chat = newChat();
let leaving = false;

// --- Conversations.

/** Keep the conversation at hand; an answer that is still on its way is kept as far as it has come. */
function keep() {
  const kept = chat.exchanges.filter(({ answer }) => answer.shown);
  if (!kept.length) return dropChat(chat.id);
  sessionStorage.setItem(CURRENT, chat.id);
  const exchanges = kept.map(({ question, answer }) => ({ question, answer: answer.record }));
  if (!keepChat({ id: chat.id, exchanges })) {
    $("announce").textContent = "This conversation is too large for the browser to keep.";
  }
  return undefined;
}

/** Show a conversation: one that is kept, or a new one. */
export function openChat(kept = newChat()) {
  if (isRunning()) keep();
  stop();
  chat = { id: kept.id, exchanges: [] };
  sessionStorage.setItem(CURRENT, chat.id);
  $("turns").replaceChildren();
  for (const { question, answer } of kept.exchanges) addExchange(question).answer.restore(answer);
  refresh();
  const main = document.querySelector("main");
  main.scrollTop = main.scrollHeight;
}

function listChats() {
  const rows = keptChats().map((kept) => {
    const open = button("open", kept.exchanges[0].question, () => {
      $("chats").close();
      openChat(kept);
    });
    open.append(element("small", "muted", new Date(kept.changed).toLocaleString()));
    if (kept.id === chat.id) open.setAttribute("aria-current", "true");
    const drop = button("quiet", "Delete", () => forget([kept]));
    drop.setAttribute("aria-label", `Delete the conversation: ${kept.exchanges[0].question}`);
    return element("li", "", "", open, drop);
  });
  $("chats").querySelector("ul").replaceChildren(...rows);
  $("no-chats").hidden = rows.length > 0;
  $("forget-chats").hidden = rows.length < 2;
}

function forget(chats) {
  for (const { id } of chats) {
    if (id === chat.id) openChat();
    dropChat(id);
  }
  listChats();
}

// --- Exchanges.

const messagesOf = (exchanges) =>
  exchanges.flatMap(({ question, answer }) => [
    { role: "user", content: question },
    ...(answer.content ? [{ role: "assistant", content: answer.content }] : []),
  ]);

/** Add a question with an empty answer to the end of the conversation. */
function addExchange(question) {
  const place = $("turns").appendChild(element("section", "exchange"));
  const exchange = { question, place };
  const bubble = element("div", "question", "", element("div", "asked", question));
  place.append(bubble);
  bubble.append(
    element(
      "div", "actions", "",
      copyButton("quiet", () => question),
      button("quiet edit", "Edit", () => edit(exchange)),
      button("quiet delete", "Delete", () => remove(exchange)),
    ), // prettier-ignore
  );
  const article = place.appendChild(element("article"));
  exchange.answer = new Answer(article);
  const actions = element("div", "actions", "", copyButton("quiet", () => exchange.answer.content));
  actions.append(button("quiet again", "Regenerate", () => again(exchange)));
  article.append(actions);
  chat.exchanges.push(exchange);
  return exchange;
}

/** Take an exchange and those after it, or it alone, out of the conversation. */
function cut(exchange, { after }) {
  const at = chat.exchanges.indexOf(exchange);
  const gone = chat.exchanges.splice(at, after ? Infinity : 1);
  gone.forEach(({ place }) => place.remove());
}

/** Which buttons there are: the newest answer can be made again, and one without text cannot be copied. */
function refresh() {
  $("welcome").hidden = chat.exchanges.length > 0;
  for (const exchange of chat.exchanges) {
    const { place, answer } = exchange;
    const failed = place.querySelector(".problem") !== null;
    place.querySelector("article > .actions").hidden = failed && !answer.content;
    place.querySelector("article > .actions > button").hidden = !answer.content;
    place.querySelector(".again").hidden = failed || exchange !== chat.exchanges.at(-1);
  }
}

export async function ask(question) {
  const last = chat.exchanges.at(-1);
  if (last && !last.answer.content) cut(last, { after: true }); // it got no answer
  const exchange = addExchange(question);
  const { answer, place } = exchange;
  refresh();
  answer.changed = followEnd;
  place.scrollIntoView({ block: "nearest" });
  const failed = (problem) => place.lastChild.append(problemBox(problem, () => again(exchange), openSettings));
  await run((signal) => answer.decode(requestFor(messagesOf(chat.exchanges), signal)), failed);
  if (answer.content) $("announce").textContent = `Answer: ${answer.content}`;
  if (!chat.exchanges.includes(exchange)) return; // another conversation was opened meanwhile
  refresh();
  if (!leaving) keep();
  followEnd();
}

function again(exchange) {
  if (isRunning()) return;
  cut(exchange, { after: true });
  ask(exchange.question);
}

function remove(exchange) {
  if (isRunning()) return;
  cut(exchange, { after: false });
  refresh();
  keep();
}

/** Put a field in the place of a question. What is sent from it takes the place of this exchange and those after it. */
function edit(exchange) {
  if (isRunning() || exchange.place.querySelector("form")) return;
  const bubble = exchange.place.querySelector(".question");
  const field = element("textarea", "", exchange.question);
  field.setAttribute("aria-label", "Edit the question");
  const later = chat.exchanges.at(-1) === exchange ? "" : "The turns after it are replaced.";
  const cancel = () => {
    form.remove();
    bubble.hidden = false;
  };
  const send = element("button", "primary", "Send");
  const form = element(
    "form", "editing", "", field,
    element("menu", "", "", element("span", "muted", later), button("quiet", "Cancel", cancel), send),
  ); // prettier-ignore
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = field.value.trim();
    if (isRunning() || !text) return;
    cut(exchange, { after: true });
    ask(text);
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") cancel();
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
  bubble.hidden = true;
  bubble.after(form);
  field.style.height = `${Math.min(300, field.scrollHeight + 4)}px`;
  field.focus();
}

function followEnd() {
  const main = document.querySelector("main");
  if (main.scrollHeight - main.scrollTop - main.clientHeight < 200) main.scrollTop = main.scrollHeight;
}

export function installChat() {
  try {
    openChat(readChat(sessionStorage.getItem(CURRENT)) ?? newChat());
  } catch {
    openChat(); // what is kept is damaged
  }
  addEventListener("pagehide", () => {
    if (isRunning()) keep();
    leaving = true; // the browser ends the request, which is no broken connection
  });
  addEventListener("pageshow", () => (leaving = false));
  $("open-chats").addEventListener("click", () => {
    listChats();
    $("chats").showModal();
  });
  $("forget-chats").addEventListener("click", () => forget(keptChats()));
}
