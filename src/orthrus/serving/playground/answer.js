// What the server streams, and how an answer shows it: tokens coloured by how they came, one bar per pass, figures,
// and the tip with the details of a token. Text from outside enters the page through textContent only.

const SOURCES = {
  draft: ["accepted draft", "proposed in parallel, confirmed by the model"],
  lookup: ["looked up", "copied from earlier text, confirmed by the model"],
  bonus: ["bonus", "the model's own token after the drafts of its pass"],
  plain: ["plain", "from a pass without drafts"],
};

/** An element with a class, a text and children; each may be left out. */
export function element(tag, className = "", text = "", ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== "") made.textContent = text;
  made.append(...children);
  return made;
}

// --- The server.

/** A problem to show: a title, the message below it, the HTTP status and the seconds to wait, if any. */
class ServerError extends Error {
  constructor(title, message, { status = 0, wait = 0 } = {}) {
    super(message);
    Object.assign(this, { title, status, wait });
  }
}

/** Send a request, a POST where there is a body. Throws ServerError unless it is answered with success. */
export async function call(path, { key, body, signal }) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  if (key) headers.Authorization = `Bearer ${key}`;
  const options = { method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body) };
  const response = await fetch(path, options).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer.", "It may have stopped, or the connection is down.");
  });
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const { status } = response;
  const message = (await response.json().catch(() => null))?.error?.message || `The server answered ${status}.`;
  const wait = Number(response.headers.get("Retry-After")) || 0;
  const titles = {
    401: "This server needs an API key.",
    429: "The server is busy.",
    503: "The server takes no requests now.",
  };
  const title = titles[status] ?? (status < 500 ? "The server refused this request." : "The server failed.");
  return new ServerError(title, message, { status, wait });
}

/** The JSON chunks of a stream of server-sent events. Throws ServerError unless it ends with [DONE]. */
async function* chunksOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      return { done: true };
    });
    if (done) throw new ServerError("The connection broke midway.", "The text up to here is kept.");
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ServerError("The server failed midway.", chunk.error.message);
      yield chunk;
    }
  }
}

// --- An answer.

export class Answer {
  constructor(host) {
    this.text = element("div", "text waiting");
    this.text.tabIndex = 0;
    this.text.setAttribute("role", "group");
    this.text.setAttribute("aria-label", "Answer. Arrow keys step through its tokens.");
    this.rhythm = element("div", "rhythm");
    this.rhythm.setAttribute("aria-hidden", "true");
    this.figures = element("div", "figures");
    host.append(this.text, this.rhythm, this.figures);
    /** `content` goes back to the server with the next turn; `whole` has the reasoning before it. */
    Object.assign(this, { content: "", whole: "", finish: null });
    /** Tokens and passes so far; times in seconds of the first and the last token, and how many came with the first. */
    Object.assign(this, { tokens: 0, passes: 0, first: 0, last: 0, tokensAtFirst: 0 });
    /** Called at the first token, and at every chunk. */
    Object.assign(this, { begun: () => {}, changed: () => {} });
  }

  /** Decode a request live. Returns its chunks with the times at which they came, for a replay. */
  async decode(request) {
    const heard = [];
    try {
      for await (const chunk of chunksOf(await call("v1/chat/completions", request))) {
        heard.push({ chunk, now: performance.now() / 1000 });
        this.add(chunk, heard.at(-1).now);
      }
    } finally {
      this.end();
    }
    return heard;
  }

  /** Show a chunk that came at `now`, in seconds. */
  add(chunk, now) {
    const { delta = {}, finish_reason: finish } = chunk.choices?.[0] ?? {};
    const text = (delta.reasoning_content ?? "") + (delta.content ?? "");
    this.content += delta.content ?? "";
    this.whole += text;
    this.finish = finish ?? this.finish;
    const pass = chunk.orthrus ?? { pieces: text ? [{ text, source: "plain" }] : [] };
    if (pass.pieces.length) this.draw(pass, now);
    this.passes = chunk.orthrus?.pass ?? this.passes; // that of an end token shows nothing
    if (chunk.usage) this.tokens = chunk.usage.completion_tokens;
    this.showFigures();
    this.changed();
  }

  draw(pass, now) {
    if (!this.first) {
      [this.first, this.tokensAtFirst] = [now, pass.pieces.length];
      this.begun();
    }
    this.last = now;
    this.tokens += pass.pieces.length;
    this.passes = pass.pass ?? this.passes + 1;
    const { confidence = [], rejected = [] } = pass;
    const drafts = pass.pieces.filter((piece) => piece.source === "draft" || piece.source === "lookup");
    const known = confidence.length === drafts.length + rejected.length; // else text was held back for a pass
    const refused = rejected.map((text, n) => ({ text, sure: known ? confidence[drafts.length + n] : undefined }));
    const group = this.text.appendChild(element("span", "pass"));
    const bar = this.rhythm.appendChild(element("i"));
    for (const piece of pass.pieces) {
      const token = element("span", `token ${piece.source}`, piece.text);
      const sure = known ? confidence[drafts.indexOf(piece)] : undefined;
      token.tabIndex = -1;
      token.detail = { ...piece, sure, refused, pass: this.passes, kind: pass.kind, rows: pass.rows };
      if (piece.text) group.append(token);
      bar.prepend(element("b", piece.source));
    }
  }

  /** Seconds from the first token to the last. */
  get seconds() {
    return this.last - this.first;
  }

  /** Tokens per second after the first ones; 0 before there are more. */
  get speed() {
    return this.seconds ? (this.tokens - this.tokensAtFirst) / this.seconds : 0;
  }

  get tokensPerPass() {
    return this.passes ? this.tokens / this.passes : 0;
  }

  showFigures() {
    const figure = (value, unit) => element("span", "", "", element("strong", "", value), ` ${unit}`);
    const shown = [figure(this.tokens, "tokens"), figure(this.passes, "passes")];
    shown.push(figure(this.tokensPerPass.toFixed(2), "tokens per pass"));
    if (this.speed) shown.push(figure(this.speed.toFixed(0), "tokens/s"));
    if (this.finish === "length") shown.push(element("span", "", "ended at the maximum of tokens"));
    if (this.tokens) this.figures.replaceChildren(...shown);
  }

  end() {
    this.text.classList.remove("waiting");
  }
}

// --- The tip: pass, confidence and refused drafts of the token under the pointer or in focus.

const visible = (text) => text.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "⇥");
const percent = (sure) => (sure === undefined ? "" : ` ${Math.round(100 * sure)} %`);

function tipContent({ source, sure, refused, pass, kind, rows }) {
  const [name, meaning] = SOURCES[source] ?? [source, ""];
  const shape = [`Pass ${pass}`, kind, rows && `${rows} rows`].filter(Boolean).join(" · ");
  const lines = [
    element("div", "", "", element("span", `token ${source}`, name), ` ${meaning}`),
    element("div", "muted", shape),
  ];
  if (sure !== undefined) lines.push(element("div", "", `Confidence of the draft:${percent(sure)}`));
  if (refused.length) {
    const texts = refused.map((draft) => element("code", "", "", element("s", "", visible(draft.text)), percent(draft.sure)));
    lines.push(element("div", "", "Refused in this pass: ", ...texts));
  }
  return lines;
}

/** Show tips for the tokens of all answers: on hover, on focus by arrow keys, and on tap. */
export function installTip(tip) {
  const hide = () => {
    tip.hidden = true;
    document.querySelector(".token.shown")?.classList.remove("shown");
  };
  const show = (event) => {
    hide();
    const token = event.target.closest?.(".text .token");
    if (!token) return;
    tip.replaceChildren(...tipContent(token.detail));
    tip.hidden = false;
    token.classList.add("shown");
    token.setAttribute("aria-describedby", tip.id);
    const [box, own] = [token.getClientRects()[0], tip.getBoundingClientRect()];
    const above = box.top - own.height - 8;
    tip.style.top = `${above > 8 ? above : box.bottom + 8}px`;
    tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - own.width - 8))}px`;
  };
  for (const name of ["pointerover", "focusin", "click"]) document.addEventListener(name, show);
  document.addEventListener("pointermove", (event) => tip.hidden && show(event)); // after a scroll
  document.addEventListener("scroll", hide, true);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const text = event.target.closest?.(".text");
    if (!step || !text) return;
    event.preventDefault();
    const tokens = [...text.querySelectorAll(".token")];
    const at = tokens.indexOf(event.target) + step;
    tokens[Math.max(0, Math.min(at, tokens.length - 1))]?.focus();
  });
}
