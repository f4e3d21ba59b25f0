// Requests to the server, and problems as people need them.

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
export async function* chunksOf(response) {
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
