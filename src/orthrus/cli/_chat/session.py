"""The loop of a chat: read a turn, run a command or answer, print."""

from __future__ import annotations

import difflib
from collections.abc import Generator, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console

from orthrus.cli._chat import settings
from orthrus.cli._chat.answers import Answerer, AnswerError, ContextFullError, Figures, Part
from orthrus.cli._chat.conversation import Conversation
from orthrus.cli._chat.terminal import Reader, interruption, printable, unquoted
from orthrus.cli._chat.wrapping import Styled, lines_for

COMMANDS = {
    "/help": "this list",
    "/clear": "forget the conversation (also /reset)",
    "/undo": "forget the last exchange",
    "/retry": "answer the last question again",
    "/system": "TEXT sets the system message, without TEXT none",
    "/set": "NAME VALUE changes a setting, `none` unsets it; without them, show all",
    "/show": "model, context, system message and settings",
    "/save": "FILE writes the conversation",
    "/load": "FILE continues a saved conversation",
    "/stats": "what this chat has taken so far",
    "/quit": "leave (also /bye, Ctrl-D)",
}
ALIASES = {"/exit": "/quit", "/bye": "/quit", "/?": "/help", "/reset": "/clear"}
HINT = "/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves."


class Quit(Exception):  # noqa: N818
    """The user leaves."""


class Session:
    """A chat between a reader and an answerer. Answers go to `out`, everything else to `notes`."""

    def __init__(self, answerer: Answerer, reader: Reader, out: Console, notes: Console, *, color: bool = True) -> None:
        self.conversation, self.options = Conversation(), dict[str, Any]()
        self._answerer, self._reader, self._out, self._notes = answerer, reader, out, notes
        self._style = "green" if color else ""
        self._wrap = lines_for(out)
        self._figures: list[Figures] = []

    def run(self) -> None:
        """Chat until the input ends or the user leaves."""
        self.note(f"{self._answerer.name}. {HINT}")
        while True:
            try:
                text = self._reader.read()
                if (quoted := unquoted(text)) is not None:
                    if quoted.strip():
                        self.ask(quoted)
                elif text.startswith("/") and "\n" not in text:
                    self.command(text)
                elif text.strip():
                    self.ask(text)
            except KeyboardInterrupt:
                self.note("Ctrl-D or /quit leaves.")
            except (EOFError, Quit):
                return

    def ask(self, question: str) -> bool:
        """Answer a question. Returns whether there was an answer, which is then part of the conversation."""
        text, figures, problem, left_out = "", None, "", self.conversation.left_out
        with interruption(immediate=self._answerer.interruptible) as pressed:
            try:
                with closing(self._answer(question)) as parts:
                    for part in parts:
                        self._print(part, text)
                        text = text[: len(text) - part.taken_back] + part.text
                        figures = part.figures
                        if pressed.asked:
                            break
            except KeyboardInterrupt:
                pressed.asked = True
            except AnswerError as error:
                problem = str(error)
        self._display(self._wrap.finish())
        self._wrap.start_line()
        self._out.print()
        if problem:
            self._problem(f"{problem}{'' if text else ' This turn is dropped.'}")
        elif figures is not None:
            self._figures.append(figures)
            self.note(str(figures))
        else:
            self._problem(f"stopped{'; the text so far is part of the conversation' if text else ''}")
        if text:
            self.conversation.add(question, text)
        else:  # the turns before it are sent again with a question that leaves them room
            self.conversation.left_out = left_out
        return bool(text)

    def _answer(self, question: str) -> Generator[Part, None, None]:
        """Answer a question. The oldest turns are left out, with a note, while the conversation does not fit."""
        before = self.conversation.left_out
        while True:
            parts = self._answerer.answer(self.conversation.asking(question), self.options)
            with closing(parts):
                try:
                    first = next(parts, None)
                except ContextFullError as error:
                    if not self.conversation.leave_out_oldest():
                        raise AnswerError(str(error)) from error
                    continue
                if self.conversation.left_out > before:
                    count = self.conversation.left_out
                    self.note(f"[the context is full: the oldest {count} turns are no longer sent]")
                if first is not None:
                    yield first
                yield from parts
                return

    def command(self, line: str) -> None:
        """Run a command. Raises Quit."""
        name, _, argument = line.strip().partition(" ")
        name, argument = ALIASES.get(name, name), argument.strip()
        if name not in COMMANDS:
            near = difflib.get_close_matches(name, [*COMMANDS, *ALIASES], 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"commands: {', '.join(COMMANDS)}."
            self._problem(f"no command {name}; {hint} A turn that begins with a slash needs a space before it.")
            return
        try:
            getattr(self, f"_{name[1:]}")(argument)
        except ValueError as error:
            self._problem(str(error))
        except OSError as error:
            self._problem(f"{argument}: {error.strerror or error}")

    def note(self, text: str) -> None:
        """Print a line that is not part of an answer."""
        self._notes.print(text, style="dim", markup=False, soft_wrap=not self._notes.is_terminal)

    def _problem(self, text: str) -> None:
        self._notes.print(printable(text), style="yellow", markup=False, soft_wrap=not self._notes.is_terminal)

    def _print(self, part: Part, before: str) -> None:
        if part.note:
            self._display(self._wrap.finish())
            self._out.print()
            self.note(f"[{part.note}]")
            lines, _, last_line = before[: len(before) - part.taken_back].rpartition("\n")
            self._wrap.start_line(after=lines)
            self._display(self._wrap.take(printable(last_line)))
        self._display(self._wrap.take(printable(part.text), self._style if part.drafted else ""))

    def _display(self, pieces: Iterable[Styled]) -> None:
        for text, style in pieces:
            self._out.print(text, style=style, end="", markup=False, soft_wrap=True)

    def _help(self, _argument: str) -> None:
        for name, meaning in COMMANDS.items():
            self.note(f"{name:<8} {meaning}")
        self.note(
            "Enter sends, Alt+Enter (or Esc, Enter) starts a line, pasted lines and lines between triple quotes"
            ' (""") are one turn.'
        )

    def _clear(self, _argument: str) -> None:
        self.conversation.reset()
        self.note("The conversation is empty.")

    def _undo(self, _argument: str) -> None:
        question = self.conversation.undo()
        self.note("There is nothing to undo." if question is None else f"Forgotten: {printable(question)}")

    def _retry(self, _argument: str) -> None:
        kept = list(self.conversation.turns)
        question = self.conversation.undo()
        if question is None:
            raise ValueError("there is no question to answer again")
        if not self.options.get("temperature") and "temperature" in self.options:
            self.note("Greedy decoding gives the same answer again; /set temperature 0.8 samples.")
        if not self.ask(question):
            self.conversation.turns = kept

    def _system(self, argument: str) -> None:
        self.conversation.system = argument or None
        self.note("The system message is set." if argument else "There is no system message now.")

    def _set(self, argument: str) -> None:
        if not argument:
            self._settings()
            return
        name, _, text = argument.replace("=", " ", 1).partition(" ")
        if not text.strip():
            raise ValueError(f"/set needs a value: /set {name} VALUE")
        name, value = settings.parse(name, text.strip())
        changed = {key: kept for key, kept in {**self.options, name: value}.items() if kept is not None}
        settings.check(changed)
        self.options = changed
        self.note(settings.changed(self.options, name))

    def _settings(self) -> None:
        for line in settings.shown(self.options, self._answerer.defaults):
            self.note(line)

    def _show(self, _argument: str) -> None:
        self.note(f"{'model':<18} {self._answerer.name}")
        last = self._figures[-1] if self._figures else Figures()
        if last.context:
            self.note(f"{'context':<18} {last.prompt_tokens + last.tokens} of {last.context} tokens")
        left_out = f", of which the oldest {n} are no longer sent" if (n := self.conversation.left_out) else ""
        self.note(f"{'conversation':<18} {len(self.conversation.turns)} turns{left_out}")
        self.note(f"{'system message':<18} {printable(self.conversation.system or 'none')}")
        self._settings()

    def _save(self, argument: str) -> None:
        path = _path(argument, "/save")
        self.conversation.save(path)
        self.note(f"Saved {len(self.conversation.turns)} turns in {path}.")

    def _load(self, argument: str) -> None:
        path = _path(argument, "/load")
        self.conversation.load(path)
        self.note(f"Loaded {len(self.conversation.turns)} turns from {path}.")

    def _stats(self, _argument: str) -> None:
        tokens, passes = sum(f.tokens for f in self._figures), sum(f.passes for f in self._figures)
        seconds = sum(f.seconds for f in self._figures)
        per_pass = f" in {passes} passes ({tokens / passes:.2f} per pass)" if passes else ""
        speed = f", {tokens / seconds:.1f} tokens/s" if seconds else ""
        answers = "1 answer" if len(self._figures) == 1 else f"{len(self._figures)} answers"
        self.note(f"{answers}: {tokens} tokens{per_pass} in {seconds:.1f} s{speed}.")
        if self._figures:
            last = self._figures[-1]
            self.note(f"The conversation has {last.prompt_tokens + last.tokens} tokens.")

    def _quit(self, _argument: str) -> None:
        raise Quit


def _path(argument: str, command: str) -> Path:
    if not argument:
        raise ValueError(f"{command} needs the name of a file")
    return Path(argument).expanduser()
