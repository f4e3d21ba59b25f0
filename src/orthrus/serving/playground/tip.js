// The tip: pass, confidence and refused drafts of the token under the pointer or in focus.
import { element } from "./element.js";

const SOURCES = {
  draft: ["accepted draft", "proposed in parallel, confirmed by the model"],
  lookup: ["looked up", "copied from earlier text, confirmed by the model"],
  bonus: ["bonus", "the model's own token after the drafts of its pass"],
  plain: ["plain", "from a pass without drafts"],
};
const MARGIN = 8;

const visible = (text) => text.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "⇥");
const percent = (sure) => (sure === undefined ? "" : ` ${Math.round(100 * sure)} %`);

function contentOf({ source, sure, refused, pass, kind, rows }) {
  const [name, meaning] = SOURCES[source] ?? [source, ""];
  const shape = [`Pass ${pass}`, kind, rows && `${rows} rows`].filter(Boolean).join(" · ");
  const lines = [
    element("div", "", "", element("span", `token ${source}`, name), ` ${meaning}`),
    element("div", "muted", shape),
  ];
  if (sure !== undefined) lines.push(element("div", "", `Confidence of the draft:${percent(sure)}`));
  if (refused.length) {
    const texts = refused.flatMap((draft) => [
      element("code", "", "", element("s", "", visible(draft.text)), percent(draft.sure)),
      " ", // where a line may break
    ]);
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
    tip.replaceChildren(...contentOf(token.detail));
    tip.hidden = false;
    token.classList.add("shown");
    token.setAttribute("aria-describedby", tip.id);
    const [box, size] = [token.getClientRects()[0], tip.getBoundingClientRect()];
    const above = box.top - size.height - MARGIN;
    const below = Math.min(box.bottom + MARGIN, innerHeight - size.height - MARGIN);
    tip.style.top = `${Math.max(MARGIN, above > MARGIN ? above : below)}px`;
    tip.style.left = `${Math.max(MARGIN, Math.min(box.left, innerWidth - size.width - MARGIN))}px`;
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
    const tokens = [...text.querySelectorAll(".token")].filter((token) => token.getClientRects().length);
    const at = tokens.indexOf(event.target) + step;
    tokens[Math.max(0, Math.min(at, tokens.length - 1))]?.focus();
  });
}
