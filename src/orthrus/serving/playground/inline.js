// The spans inside a paragraph of Markdown: code, emphasis, links.

const MOST_NESTED = 8;
const SPECIAL = /[\\`*_~![]|https?:\/\//g;
const ESCAPE = /\\[!-/:-@[-`{-~]/y;
const TICKS = /`+/y;
const DELIMITER = /\*\*|__|~~|\*|_/y;
const LINK = /!?\[([^[\]\n]*)\]\(([^()\s]*(?:\([^()\s]*\)[^()\s]*)*)(?:\s+"[^"\n]*")?\)/y;
const ADDRESS = /https?:\/\/[^\s<>"'`]*[^\s<>"'`.,;:!?)*_\]|]/y;
const TAGS = { "**": "strong", __: "strong", "~~": "del", "*": "em", _: "em" };

/** The address of a link: absolute, and of a protocol that runs nothing. Undefined for all others. */
function safeAddress(address) {
  if (!/^(https?:\/\/|mailto:)/i.test(address)) return undefined;
  try {
    return new URL(address).href;
  } catch {
    return undefined;
  }
}

function match(pattern, text, at, end) {
  pattern.lastIndex = at;
  const found = pattern.exec(text);
  return found && pattern.lastIndex <= end ? found : null;
}

const isWord = (char) => /[A-Za-z0-9]/.test(char ?? "");
const isSpace = (char) => char === undefined || /\s/.test(char);

/** Where the delimiter that was opened before `from` closes; -1 if nowhere. */
function closing(text, delimiter, from, end) {
  for (let at = text.indexOf(delimiter, from + 1); at >= 0; at = text.indexOf(delimiter, at + 1)) {
    if (at + delimiter.length > end) return -1;
    while (delimiter.length === 2 && at + 2 < end && text[at + 2] === delimiter[0]) at += 1; // the last two of three
    const after = at + delimiter.length < end ? text[at + delimiter.length] : undefined;
    const longer = delimiter.length === 1 && (text[at - 1] === delimiter || after === delimiter);
    if (!longer && !isSpace(text[at - 1]) && !(delimiter[0] !== "~" && delimiter !== "**" && isWord(after))) return at;
  }
  return -1;
}

function closingTicks(text, ticks, from, end) {
  const pattern = /`+/g;
  pattern.lastIndex = from;
  for (let found; (found = pattern.exec(text)) && pattern.lastIndex <= end; ) {
    if (found[0].length === ticks.length) return found.index;
  }
  return -1;
}

/** The span at a position: its tag, where its content begins and ends, and where it ends. Null if there is none. */
function spanAt(text, at, end, unclosed) {
  const escape = match(ESCAPE, text, at, end);
  if (escape) return { from: at + 1, to: at + 2, end: at + 2, code: true };
  const once = (delimiter, find) => {
    const close = unclosed.has(delimiter) ? -1 : find(text, delimiter, at + delimiter.length, end);
    if (close < 0) unclosed.add(delimiter); // nor from any later position
    return close < 0 ? null : { from: at + delimiter.length, to: close, end: close + delimiter.length };
  };
  const ticks = match(TICKS, text, at, end)?.[0];
  if (ticks) {
    const span = once(ticks, closingTicks);
    return span ? { ...span, tag: "code", code: true } : { from: at, to: at + ticks.length, end: at + ticks.length, code: true };
  }
  const delimiter = match(DELIMITER, text, at, end)?.[0];
  if (delimiter) {
    if (isSpace(text[at + delimiter.length]) || (isWord(text[at - 1]) && delimiter !== "~~")) return null;
    const span = once(delimiter, closing);
    return span && { ...span, tag: TAGS[delimiter] };
  }
  const link = match(LINK, text, at, end);
  if (link) {
    const from = at + link[0].indexOf("[") + 1;
    const href = safeAddress(link[2]);
    return href && link[1] ? { tag: "a", href, from, to: from + link[1].length, end: at + link[0].length } : null;
  }
  const address = isWord(text[at - 1]) ? null : match(ADDRESS, text, at, end);
  const href = address && safeAddress(address[0]);
  return href ? { tag: "a", href, from: at, to: at + address[0].length, end: at + address[0].length, code: true } : null;
}

/** Write the characters of a run from `at` to `end`, its spans as elements. The writer has open, close, show and hide. */
export function writeInline(writer, run, at, end, depth = 0) {
  const unclosed = new Set();
  for (;;) {
    SPECIAL.lastIndex = at;
    const next = SPECIAL.exec(run.text);
    if (!next || next.index >= end || depth === MOST_NESTED) return writer.show(run, end);
    const span = spanAt(run.text, next.index, end, unclosed);
    if (!span) {
      at = next.index + (next[0] === run.text[next.index + 1] && next[0] !== "[" ? 2 : 1); // "**" is no "*" either
      continue;
    }
    writer.show(run, next.index);
    const made = span.tag && writer.open(span.tag);
    if (span.href) Object.assign(made, { href: span.href, title: span.href, target: "_blank", rel: "noopener noreferrer" });
    writer.hide(run, span.from);
    if (span.code) writer.show(run, span.to);
    else writeInline(writer, run, span.from, span.to, depth + 1);
    writer.hide(run, span.end);
    if (made) writer.close();
    at = span.end;
  }
}
