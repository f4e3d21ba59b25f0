// The race: plain decoding live, then Orthrus live beside a replay of plain's measured times.
import { Answer } from "./answer.js";
import { element } from "./element.js";
import { problemBox, run } from "./run.js";
import { openSettings, requestFor, settings } from "./settings.js";

const verdict = document.getElementById("verdict");

export async function race(prompt) {
  const { temperature, seed: chosen, max_tokens: most } = settings();
  const sampled = temperature === "" || Number(temperature) > 0;
  const seed = Number(chosen || Math.floor(Math.random() * 2 ** 32));
  const request = (signal, drafts) =>
    requestFor([{ role: "user", content: prompt }], signal, { ...(sampled && { seed }), drafts });
  let plain = lane("plain", "live", Number(most));
  const orthrus = lane("orthrus", "next", plain.total);
  verdict.replaceChildren(element("p", "", prompt));
  let told = false;
  const failed = (problem) => {
    told = true;
    verdict.append(problemBox(problem, () => race(prompt), openSettings));
  };
  await run(async (signal) => {
    const heard = await plain.decode(request(signal, false));
    const { first, tokens } = plain;
    plain = lane("plain", "replay", tokens);
    Object.assign(orthrus, { total: tokens, label: "live" });
    const begun = new Promise((resolve) => (orthrus.begun = resolve));
    const replayed = begun.then(() => replay(heard, first, plain, signal));
    await Promise.all([orthrus.decode(request(signal, true)), replayed]);
    showVerdict(plain, orthrus, sampled ? ` Both used the seed ${seed}.` : "");
    told = true;
  }, failed);
  if (!told) verdict.append(element("p", "muted", "Stopped before both had ended, so there is nothing to compare."));
  plain.end();
  orthrus.end();
}

/** A fresh answer in a lane. `total` is the number of tokens at which its bar is full. */
function lane(name, label, total) {
  const host = document.getElementById(`lane-${name}`);
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
  verdict.replaceChildren(
    element("p", "headline", ratio ? `${ratio.toFixed(2)} times as fast` : "Too short to compare speeds"),
    element("p", equal ? "badge" : "badge bad", equal ? `✓ ${told}` : told),
    element("p", "muted", figures),
  );
}
