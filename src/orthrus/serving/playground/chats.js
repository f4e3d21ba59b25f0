// Conversations that this browser keeps, each under a key of its own, so that tabs do not overwrite each other's.

const PREFIX = "orthrus.chat.";
const MOST = 100;

function read(key) {
  try {
    const chat = JSON.parse(localStorage.getItem(key));
    return Array.isArray(chat?.exchanges) ? chat : null;
  } catch {
    return null; // not ours, or damaged
  }
}

/** All conversations, the newest first. */
export function keptChats() {
  const keys = Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
  return keys.map(read).filter(Boolean).sort((one, other) => other.changed - one.changed);
}

export function readChat(id) {
  return read(PREFIX + id);
}

export function dropChat(id) {
  localStorage.removeItem(PREFIX + id);
}

/** Keep a conversation. Where the browser has no room, the oldest others go. Returns whether it is kept. */
export function keepChat(chat) {
  const others = keptChats().filter(({ id }) => id !== chat.id);
  for (const { id } of others.splice(MOST - 1)) dropChat(id);
  for (;;) {
    try {
      localStorage.setItem(PREFIX + chat.id, JSON.stringify({ ...chat, changed: Date.now() }));
      return true;
    } catch {
      if (!others.length) return false;
      dropChat(others.pop().id);
    }
  }
}
