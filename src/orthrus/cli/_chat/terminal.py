"""The terminal side of chat: reading turns with line editing and history, and Ctrl-C while an answer comes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

HISTORY_BYTES = 4 * 2**20
"""Beyond this size the older half of the history is dropped."""


class Reader(Protocol):
    """Where turns come from."""

    def read(self) -> str:
        """The next turn, which may have several lines. Raises EOFError at the end, KeyboardInterrupt at Ctrl-C."""
        ...


QUOTES = '"""'
"""They begin and end a turn of several lines."""


def is_open(text: str) -> bool:
    """Whether a turn has begun with quotes that are not closed yet."""
    text = text.strip()
    return text.startswith(QUOTES) and (len(text) < 2 * len(QUOTES) or not text.endswith(QUOTES))


def unquoted(text: str) -> str | None:
    """What stands between the quotes of a turn; None if it does not begin with them."""
    text = text.strip()
    return text.removeprefix(QUOTES).removesuffix(QUOTES).strip("\r\n") if text.startswith(QUOTES) else None


class LineReader:
    """Turns from a pipe or a file: one per line or between triple quotes, empty lines left out."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def read(self) -> str:
        """The next line, or the next lines up to closing quotes or the end."""
        text = self._stream.readline()
        if not text:
            raise EOFError
        while is_open(text) and (line := self._stream.readline()):
            text += line
        return text.rstrip("\r\n")


class PromptReader:
    """Turns from a terminal: Enter sends, Alt+Enter starts a line, pasted lines stay one turn, arrows recall."""

    def __init__(self, commands: Sequence[str], history: Path | None) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.filters import Condition

        session: PromptSession[str] = PromptSession(
            history=_history(history),
            multiline=True,
            key_bindings=_key_bindings(),
            completer=WordCompleter(list(commands), sentence=True),
            complete_while_typing=Condition(lambda: session.default_buffer.text.startswith("/")),
            prompt_continuation="  ",
        )
        self._session = session

    def read(self) -> str:
        """The next turn."""
        return self._session.prompt("> ")


def _key_bindings() -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings

    bindings = KeyBindings()

    @bindings.add("enter")
    def _send(event: KeyPressEvent) -> None:
        if is_open(event.current_buffer.text):
            event.current_buffer.insert_text("\n")
        else:
            event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _start_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def _history(path: Path | None) -> History:
    """The history in a file that only its owner can read, or in memory where the file cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    if path is not None:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
            path.chmod(0o600)
            if path.stat().st_size > HISTORY_BYTES:
                kept = path.read_bytes()[-HISTORY_BYTES // 2 :]
                path.write_bytes(kept[max(0, kept.find(b"\n\n#")) :])
            return FileHistory(str(path))
    return InMemoryHistory()


def history_file() -> Path:
    """`chat-history` in the directory for data of programs: `ORTHRUS_DATA`, or that of the platform."""
    if own := os.environ.get("ORTHRUS_DATA"):
        return Path(own) / "chat-history"
    home = Path.home()
    if sys.platform == "darwin":
        base = home / "Library" / "Application Support"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    return base / "orthrus" / "chat-history"


class Interruption:
    """Whether Ctrl-C was pressed."""

    asked = False


@contextmanager
def interruption(*, immediate: bool) -> Iterator[Interruption]:
    """Note Ctrl-C instead of raising: a pass of the model that is cut off midway would leave its cache in disorder.

    The second Ctrl-C raises KeyboardInterrupt, and so does the first with `immediate`.
    """
    noted = Interruption()
    before = signal.getsignal(signal.SIGINT)

    def note(_number: int, _frame: FrameType | None) -> None:
        if noted.asked or immediate:
            raise KeyboardInterrupt
        noted.asked = True

    try:
        signal.signal(signal.SIGINT, note)
    except ValueError:  # not the main thread, which alone receives signals
        yield noted
        return
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def printable(text: str) -> str:
    """Text without control characters, which could drive the terminal; line breaks and tabs stay."""
    return "".join(c for c in text if c in "\n\t" or (ord(c) >= 32 and not 127 <= ord(c) < 160))
