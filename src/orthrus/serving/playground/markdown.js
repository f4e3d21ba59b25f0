// A small Markdown renderer that only adds structure. Every character of the source enters the page, in order, as text;
// those that are syntax are hidden by a class. The text content of the page is therefore the source, nothing in it is ever
// read as HTML, and links lead to http, https and mailto only.
import { copyButton } from "./element.js";
import { writeInline } from "./inline.js";

const MOST_NESTED = 12;
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+|$)/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)(?:[-*+]|(\d{1,9})[.)])(?: {1,4}|$)/;
const TABLE_LINE = /^\|?(?:[ \t]*:?-+:?[ \t]*\|)+[ \t]*(?::?-+:?)?$/;

const isBlank = (line) => line.text.trim() === "";
const indentOf = (line) => line.text.length - line.text.trimStart().length;
const strip = (line, count) => ({ ...line, start: line.start + count, text: line.text.slice(count) });
const beginsTable = (lines, at) => lines[at].text.includes("|") && TABLE_LINE.test((lines[at + 1]?.text ?? "").trim());

/** Lines: `start` is the place of `text` in the source, without prefixes; `end` that of the line after it. */
function linesOf(source, from) {
  const lines = [];
  while (from < source.length) {
    const at = source.indexOf("\n", from);
    const end = at < 0 ? source.length : at + 1;
    lines.push({ start: from, text: source.slice(from, at < 0 ? end : at), end });
    from = end;
  }
  return lines;
}

/** Whether a line ends the paragraph before it. Of numbered lists only those from 1 do: a year may begin a line. */
function interrupts(lines, at) {
  const { text } = lines[at];
  const item = ITEM.exec(text);
  if (item && item[0].length < text.length && (item[2] ?? "1") === "1") return true;
  return [FENCE, HEADING, RULE, QUOTE].some((pattern) => pattern.test(text)) || beginsTable(lines, at);
}

/** Lines as one text: `places` has the place in the source of each of its characters, and of its end. */
function runOf(lines) {
  const places = [];
  for (const { start, text, end } of lines) {
    for (let at = 0; at < text.length; at += 1) places.push(start + at);
    places.push(Math.max(start + text.length, end - 1)); // of the line break, or of the end
  }
  return { text: lines.map((line) => line.text).join("\n"), places, at: 0 };
}

/** Renders a growing text into an element. `paint(parent, start, end, hidden)` adds the characters of a range. */
export class Markdown {
  constructor(host, paint) {
    Object.assign(this, { host, paint, at: 0, parents: [host], settled: { at: 0, nodes: 0 } });
  }

  /** The element that the last character was added to. */
  get last() {
    return this.lastParent ?? this.host;
  }

  /** Render a source that begins with the one before. What stands before its last two blocks is final and stays. */
  update(source) {
    while (this.host.childNodes.length > this.settled.nodes) this.host.lastChild.remove();
    this.at = this.settled.at;
    const begun = [];
    this.blocks(linesOf(source, this.at), () => begun.push({ at: this.at, nodes: this.host.childNodes.length }));
    this.settled = begun.at(-2) ?? this.settled;
  }

  // --- What the renderers of blocks and spans write with.

  open(tag, className = "") {
    const made = document.createElement(tag);
    if (className) made.className = className;
    this.parents.at(-1).append(made);
    this.parents.push(made);
    return made;
  }

  close() {
    this.parents.pop();
  }

  /** Add the characters up to a place in the source. */
  put(to, hidden) {
    if (to <= this.at) return;
    this.lastParent = this.parents.at(-1);
    this.paint(this.lastParent, this.at, to, hidden);
    this.at = to;
  }

  /** Show a run up to an index in its text, but hide the prefixes of its lines. */
  show(run, to) {
    const { places } = run;
    while (run.at < to) {
      this.put(places[run.at], true);
      const from = run.at;
      while (run.at < to && places[run.at] === places[from] + run.at - from) run.at += 1;
      this.put(places[run.at - 1] + 1, false);
    }
  }

  hide(run, to) {
    this.put(run.places[to], true);
    run.at = to;
  }

  // --- Blocks.

  /** Render lines that stand in the innermost open element. `begin` is called before each block. */
  blocks(lines, begin = () => {}) {
    let at = 0;
    const skip = () => {
      while (at < lines.length && isBlank(lines[at])) at += 1;
      this.put(lines[at]?.start ?? lines.at(-1)?.end ?? this.at, true);
    };
    skip();
    while (at < lines.length) {
      begin();
      const { text } = lines[at];
      const write =
        this.parents.length > MOST_NESTED ? this.paragraph
        : FENCE.test(text) ? this.code
        : HEADING.test(text) ? this.heading
        : RULE.test(text) ? this.rule
        : QUOTE.test(text) ? this.quote
        : ITEM.test(text) ? this.list
        : beginsTable(lines, at) ? this.table
        : this.paragraph; // prettier-ignore
      const depth = this.parents.length;
      at = write.call(this, lines, at);
      skip(); // into the block: a token of its last word and the break after it stays one
      this.parents.length = depth;
    }
  }

  paragraph(lines, at) {
    let end = at + 1;
    while (end < lines.length && !isBlank(lines[end]) && !interrupts(lines, end)) end += 1;
    this.open("p");
    const run = runOf(lines.slice(at, end));
    writeInline(this, run, 0, run.text.length);
    return end;
  }

  heading(lines, at) {
    const [prefix, marks] = HEADING.exec(lines[at].text);
    this.open(`h${Math.min(6, marks.length + 2)}`); // those of the page come before
    const run = runOf([lines[at]]);
    this.hide(run, prefix.length);
    writeInline(this, run, prefix.length, run.text.length);
    return at + 1;
  }

  rule(lines, at) {
    this.open("div", "rule");
    this.put(lines[at].end, true);
    return at + 1;
  }

  code(lines, at) {
    const [, marks, language] = FENCE.exec(lines[at].text);
    const closes = ({ text }) => FENCE.exec(text)?.[2].trim() === "" && text.trim().startsWith(marks);
    const box = this.open("div", "code");
    box.dataset.language = language.trim();
    this.open("pre");
    const code = this.open("code");
    this.put(lines[at].end, true);
    const content = [];
    for (at += 1; at < lines.length && !closes(lines[at]); at += 1) {
      this.put(lines[at].start, true);
      this.put(lines[at].end, false);
      content.push(lines[at].text);
    }
    box.prepend(copyButton("quiet", () => content.join("\n")));
    if (at < lines.length) this.put(lines[at].end, true);
    this.lastParent = code;
    return at + 1;
  }

  quote(lines, at) {
    let end = at;
    while (end < lines.length && QUOTE.test(lines[end].text)) end += 1;
    this.open("blockquote");
    this.blocks(lines.slice(at, end).map((line) => strip(line, QUOTE.exec(line.text)[0].length)));
    return end;
  }

  list(lines, at) {
    const ordered = ITEM.exec(lines[at].text)[2] !== undefined;
    this.open(ordered ? "ol" : "ul");
    for (let begun = false; ; begun = true) {
      const marker = lines[at] && !RULE.test(lines[at].text) && ITEM.exec(lines[at].text);
      if (!marker || (marker[2] !== undefined) !== ordered) return at;
      if (begun) this.close(); // the item before
      const end = this.endOfItem(lines, at, marker[1].length + 2);
      const item = this.open("li");
      if (ordered) item.value = Number(marker[2]);
      const [first, ...rest] = lines.slice(at, end);
      const inside = rest.map((line) => strip(line, Math.min(indentOf(line), marker[0].length)));
      this.blocks([strip(first, marker[0].length), ...inside]);
      for (at = end; at < lines.length && isBlank(lines[at]); ) at += 1;
      this.put(lines[at]?.start ?? lines.at(-1).end, true);
    }
  }

  /** The line after an item: it has the lines that are indented, and those that go on with its paragraph. */
  endOfItem(lines, at, indent) {
    let end = at + 1;
    for (let next = end; next < lines.length; next += 1) {
      if (isBlank(lines[next])) continue;
      const goesOn = next === end && !ITEM.test(lines[next].text) && !interrupts(lines, next);
      if (indentOf(lines[next]) < indent && !goesOn) break;
      end = next + 1;
    }
    return end;
  }

  table(lines, at) {
    this.open("div", "table");
    this.open("table");
    let end = at + 2;
    while (end < lines.length && lines[end].text.includes("|")) end += 1;
    for (let row = at; row < end; row += row === at ? 2 : 1) {
      this.open("tr");
      this.cells(lines[row], row === at ? "th" : "td", lines[row === at ? at + 1 : row].end);
      this.close();
    }
    return end;
  }

  /** The cells of a row. Its line break, and the line below a header, are hidden in the last one. */
  cells(line, tag, end) {
    const run = runOf([line]);
    const bounds = [...line.text.matchAll(/(?<!\\)\|/g)].map((bar) => bar.index);
    if (line.text.slice(0, bounds[0]).trim()) bounds.unshift(-1);
    if (line.text.slice(bounds.at(-1) + 1).trim()) bounds.push(line.text.length);
    for (let cell = 0; cell < Math.max(1, bounds.length - 1); cell += 1) {
      const content = line.text.slice(bounds[cell] + 1, bounds[cell + 1]);
      const from = bounds[cell] + 1 + content.length - content.trimStart().length;
      this.open(tag);
      this.hide(run, from);
      writeInline(this, run, from, from + content.trim().length);
      if (cell >= bounds.length - 2) this.put(end, true);
      this.close();
    }
  }
}
