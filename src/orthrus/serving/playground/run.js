// One job at a time, and the problems that end it.
import { button, element } from "./element.js";

let running = null;

export const isRunning = () => running !== null;

export function stop() {
  running?.abort();
}

/** Run a job whose signal `stop` aborts. `onProblem` gets whatever else ends it early. */
export async function run(job, onProblem) {
  running = new AbortController();
  const send = document.getElementById("send");
  document.body.classList.add("busy");
  send.setAttribute("aria-label", "Stop");
  try {
    await job(running.signal);
  } catch (error) {
    running.abort(); // the other run of the race
    if (error.name !== "AbortError") onProblem(error);
  } finally {
    running = null;
    document.body.classList.remove("busy");
    send.setAttribute("aria-label", "Send");
  }
}

/** A problem with a button that tries again, or asks for the key where one is missing. */
export function problemBox(problem, again, askForKey) {
  const title = element("strong", "", problem.title ?? "Something went wrong in this page.");
  const keyless = problem.status === 401;
  const retry = button("", keyless ? "Enter the key" : "Try again", () => {
    if (keyless) return askForKey("key");
    box.remove();
    return again();
  });
  const box = element("div", "problem", "", element("p", "", "", title, ` ${problem.message}`), retry);
  box.setAttribute("role", "alert");
  if (problem.wait) countDown(retry, problem.wait);
  return box;
}

function countDown(retry, seconds) {
  retry.disabled = seconds > 0;
  retry.textContent = seconds > 0 ? `Try again in ${seconds} s` : "Try again";
  if (seconds > 0) setTimeout(() => countDown(retry, seconds - 1), 1000);
}
