// Elements of the page. Text from outside enters it through textContent and text nodes only.

/** An element with a class, a text and children; each may be left out. */
export function element(tag, className = "", text = "", ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== "") made.textContent = text;
  made.append(...children);
  return made;
}

/** A button that calls a function. */
export function button(className, text, pressed) {
  const made = element("button", className, text);
  made.type = "button";
  made.addEventListener("click", pressed);
  return made;
}

/** Copy a text. Pages without HTTPS have no clipboard but on localhost: there a selected text field is copied. */
async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = document.body.appendChild(element("textarea", "hidden"));
  field.value = text;
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  if (!copied) throw new Error("the browser copies nothing");
  return undefined;
}

/** A button that copies what a function returns, and says for a moment whether that went well. */
export function copyButton(className, text) {
  const label = (word) => {
    made.dataset.label = word; // shown by the style sheet: the text content of an answer is the answer alone
    made.setAttribute("aria-label", word);
  };
  const made = button(`${className} copy`, "", async () => {
    label(await copy(text()).then(() => "Copied", () => "Not copied")); // prettier-ignore
    setTimeout(() => label("Copy"), 1500);
  });
  label("Copy");
  return made;
}
