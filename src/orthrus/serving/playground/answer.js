// An answer: its Markdown, whose tokens are coloured by how they came, one bar per pass, and figures.
import { element } from "./element.js";
import { Markdown } from "./markdown.js";
import { call, chunksOf } from "./server.js";

const ENDINGS = { length: "ended at the maximum of tokens", stopped: "stopped", broken: "broken off" };

export class Answer {
  constructor(host) {
    this.text = element("div", "text");
    this.text.tabIndex = 0;
    this.text.setAttribute("role", "group");
    this.text.setAttribute("aria-label", "Answer. Arrow keys step through its tokens.");
    this.rhythm = element("div", "rhythm");
    this.rhythm.setAttribute("aria-hidden", "true");
    this.figures = element("div", "figures");
    this.cursor = element("i", "cursor");
    host.append(this.text, this.rhythm, this.figures);
    this.text.append(this.cursor);
    this.markdown = new Markdown(this.text, (...range) => this.paint(...range));
    /** Passes so far, and the pieces of text in them with their places in `shown`, the text of all. */
    Object.assign(this, { heard: [], pieces: [], shown: "", piece: 0 });
    /** `content` goes back to the server with the next turn; `whole` has the reasoning before it. */
    Object.assign(this, { content: "", whole: "", ending: null });
    /** Tokens and passes so far; times in seconds of the first and the last token, and how many came with the first. */
    Object.assign(this, { tokens: 0, passes: 0, first: 0, last: 0, tokensAtFirst: 0 });
    /** Called at the first token, and whenever more is shown. */
    Object.assign(this, { begun: () => {}, changed: () => {} });
  }

  /** Decode a request live. Returns its chunks with the times at which they came, for a replay. */
  async decode(request) {
    const heard = [];
    this.ending = "broken";
    try {
      for await (const chunk of chunksOf(await call("v1/chat/completions", request))) {
        heard.push({ chunk, now: performance.now() / 1000 });
        this.add(chunk, heard.at(-1).now);
      }
    } catch (error) {
      if (error.name === "AbortError") this.ending = "stopped";
      throw error;
    } finally {
      this.end();
    }
    return heard;
  }

  /** Take a chunk that came at `now`, in seconds. */
  add(chunk, now) {
    const { delta = {}, finish_reason: finish } = chunk.choices?.[0] ?? {};
    const text = (delta.reasoning_content ?? "") + (delta.content ?? "");
    this.content += delta.content ?? "";
    this.whole += text;
    this.ending = finish ?? this.ending;
    const pass = chunk.orthrus ?? { pieces: text ? [{ text, source: "plain" }] : [] };
    if (pass.pieces.length) {
      if (!this.first) {
        [this.first, this.tokensAtFirst] = [now, pass.pieces.length];
        this.begun();
      }
      this.last = now;
      this.take(pass);
    }
    this.passes = chunk.orthrus?.pass ?? this.passes; // that of an end token shows nothing
    if (chunk.usage) this.tokens = chunk.usage.completion_tokens;
    this.frame ??= requestAnimationFrame(() => this.draw());
  }

  /** Add the pieces of a pass, to be drawn, and its bar. */
  take({ pass = this.passes + 1, kind, rows, pieces, confidence = [], rejected = [] }) {
    this.heard.push({ pass, kind, rows, pieces, confidence, rejected });
    this.tokens += pieces.length;
    this.passes = pass;
    const drafts = pieces.filter((piece) => piece.source === "draft" || piece.source === "lookup");
    const known = confidence.length === drafts.length + rejected.length; // else text was held back for a pass
    const refused = rejected.map((text, n) => ({ text, sure: known ? confidence[drafts.length + n] : undefined }));
    const bar = this.rhythm.appendChild(element("i"));
    for (const piece of pieces) {
      const sure = known ? confidence[drafts.indexOf(piece)] : undefined;
      const start = this.shown.length;
      this.shown += piece.text;
      this.pieces.push({ ...piece, start, end: this.shown.length, detail: { ...piece, sure, refused, pass, kind, rows } });
      bar.prepend(element("b", piece.source));
    }
  }

  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = undefined;
    const focused = document.activeElement?.piece;
    this.cursor.remove();
    this.markdown.update(this.shown);
    if (!this.ended) this.markdown.last.append(this.cursor);
    if (focused && !document.activeElement.piece) {
      const again = [...this.text.querySelectorAll(".token")].find((token) => token.piece === focused);
      again?.focus({ preventScroll: true });
    }
    this.showFigures();
    this.changed();
  }

  /** Add a range of the text to an element, as tokens in the pills of their passes. */
  paint(parent, start, end, hidden) {
    while (this.piece && this.pieces[this.piece].start > start) this.piece -= 1;
    for (let at = start; at < end; ) {
      while (this.pieces[this.piece].end <= at) this.piece += 1;
      const piece = this.pieces[this.piece];
      const to = Math.min(end, piece.end);
      const text = piece.text.slice(at - piece.start, to - piece.start);
      const token = tokenOf(parent, piece);
      token.append(hidden ? element("span", "syntax", text) : text);
      if (!hidden) for (const part of [token, token.parentNode]) part.classList.remove("unseen");
      at = to;
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
    const shown = [];
    if (this.tokens) {
      shown.push(figure(this.tokens, "tokens"), figure(this.passes, "passes"));
      shown.push(figure(this.tokensPerPass.toFixed(2), "tokens per pass"));
    }
    if (this.speed) shown.push(figure(this.speed.toFixed(0), "tokens/s"));
    if (this.ended && !this.tokens && this.ending === "stopped") shown.push("stopped before the first token");
    else if (this.ended && this.tokens && ENDINGS[this.ending]) shown.push(element("span", "ending", ENDINGS[this.ending]));
    this.figures.replaceChildren(...shown);
  }

  end() {
    this.ended = true;
    this.draw();
  }

  /** What a browser keeps of an answer; `restore` shows it again. */
  get record() {
    const { content, tokens, passes, first, last, tokensAtFirst } = this;
    const heard = this.heard.map((each) => [
      each.pass, each.kind, each.rows, each.pieces.map(({ text, source }) => [text, source]), each.rejected,
      each.confidence.map((sure) => Number(sure.toFixed(3))),
    ]); // prettier-ignore
    const ending = this.ended ? this.ending : "stopped"; // the page is left before the end
    return { heard, content, ending, tokens, passes, seconds: last - first, tokensAtFirst };
  }

  restore({ heard, seconds, ...rest }) {
    for (const [pass, kind, rows, pieces, rejected, confidence] of heard) {
      const named = pieces.map(([text, source]) => ({ text, source }));
      this.take({ pass, kind, rows, pieces: named, rejected, confidence });
    }
    Object.assign(this, rest, { first: 0, last: seconds });
    this.end();
  }
}

/** The element of a piece at the end of a parent: text of one token that is painted in parts stays in one. */
function tokenOf(parent, piece) {
  const { pass } = piece.detail;
  let group = parent.lastChild;
  if (group?.pass !== pass) group = parent.appendChild(Object.assign(element("span", "pass unseen"), { pass }));
  if (group.lastChild?.piece !== piece) {
    const token = group.appendChild(element("span", `token ${piece.source} unseen`));
    Object.assign(token, { piece, detail: piece.detail, tabIndex: -1 });
  }
  return group.lastChild;
}
