"""`orthrus chat`: commands, turns that fail or are stopped, loops, servers, and a real terminal."""

from __future__ import annotations

import io
import os
import pty
import random
import re
import select
import signal
import stat
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from itertools import pairwise

import pytest
import tiny
from rich.console import Console
from scripted_server import TEXT, ScriptedServer, served

import orthrus
from orthrus.cli._chat import settings
from orthrus.cli._chat.answers import AnswerError, ContextFullError, Figures, Part
from orthrus.cli._chat.local import ANTI_LOOP_PENALTIES, LocalAnswers
from orthrus.cli._chat.loops import MAX_PERIOD, MIN_REPEATED, LoopDetector
from orthrus.cli._chat.session import Session
from orthrus.cli._chat.terminal import LineReader, PromptReader, history_file, printable
from orthrus.cli._chat.wrapping import WordWrap


class Echo:
    """Answers with what it was asked, part by part; fails or is interrupted where the question says so."""

    name, interruptible, defaults = "echo", False, {"temperature": 0.0, "seed": "drawn for each answer"}

    def __init__(self):
        self.asked, self.closed = [], 0

    def answer(self, messages, options):
        self.asked.append((messages, dict(options)))
        words = messages[-1]["content"].split()
        try:
            for number, word in enumerate(words):
                if word == "fail":
                    raise AnswerError("it failed")
                if word == "^C":
                    signal.raise_signal(signal.SIGINT)
                yield Part(f"{word.upper()} ", drafted=number > 0)
            yield Part("", figures=Figures(tokens=len(words), passes=1, prompt_tokens=5, seconds=1.0))
        finally:
            self.closed += 1

    def close(self):
        pass


@pytest.fixture
def chat():
    """Run lines through a session: returns it, its answerer, the answers and the notes."""

    def run(*lines):
        out, notes, echo = io.StringIO(), io.StringIO(), Echo()
        reader = LineReader(io.StringIO("".join(f"{line}\n" for line in lines)))
        session = Session(echo, reader, Console(file=out, width=200), Console(file=notes, width=200))
        session.run()
        return session, echo, out.getvalue(), notes.getvalue()

    return run


def contents(session):
    return [turn["content"] for turn in session.conversation.turns]


def test_earlier_turns_are_part_of_the_next_question(chat):
    session, echo, out, _ = chat("one", "", "two two")
    assert out == "ONE \nTWO TWO \n"
    assert [message["role"] for message in echo.asked[1][0]] == ["user", "assistant", "user"]
    assert contents(session) == ["one", "ONE ", "two two", "TWO TWO "]


def test_a_turn_that_fails_is_dropped_and_one_that_is_stopped_keeps_its_text(chat):
    session, echo, _, notes = chat("one", "fail", "two ^C three", "four")
    assert contents(session) == ["one", "ONE ", "two ^C three", "TWO ^C ", "four", "FOUR "]
    assert "it failed This turn is dropped." in notes
    assert "stopped; the text so far is part of the conversation" in notes
    assert echo.closed == 4
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_commands_change_the_conversation(chat, tmp_path):
    file = tmp_path / "chat.jsonl"
    session, echo, _, notes = chat(
        "/system Be brief.", "one", "two", "/undo", "/retry", f"/save {file}", "/reset", "three", f"/load {file}",
        "/stats", "/load missing", "/undo", "/undo", "/retry", "/quit", "never",
    )  # fmt: skip
    assert echo.asked[2][0] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one"}]
    assert len(echo.asked) == 4
    assert file.read_text().count("\n") == 1
    assert session.conversation.system == "Be brief."
    assert contents(session) == []
    for told in ("Saved 2 turns", "Loaded 2 turns", "4 answers: 4 tokens in 4 passes", "missing: No such file",
                 "Forgotten: one", "There is nothing to undo.", "there is no question to answer again"):  # fmt: skip
        assert told in notes


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{}", "line 1"), ("not JSON", "line 1"), ('{"prompt": "hi"}', "holds a prompt and no answer"),
        ('{"messages": [{"role": "user", "content": "hi"}]}', "holds a prompt and no answer"),
        ('{"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]}', "does not begin"),
        ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n' * 2, "2 records"),
        ("", "empty"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_conversation_leaves_the_one_at_hand(chat, tmp_path, content, told):
    (tmp_path / "file").write_text(content)
    session, _, _, notes = chat("/system Be brief.", "one", f"/load {tmp_path / 'file'}")
    assert contents(session) == ["one", "ONE "]
    assert session.conversation.system == "Be brief."
    assert told in notes and "Loaded" not in notes


def test_the_habits_of_ollama(chat):
    """Turns between triple quotes, also commands between them, and its names of commands."""
    _, echo, _, notes = chat(
        '"""one', "two", 'three"""', '"""four"""', '"""', "/clear", '"""', "/set seed 7", "/show", "/set", "/clear",
        "/clera", '"""five', "six", "/bye",
    )  # fmt: skip
    assert [asked[0][-1]["content"] for asked in echo.asked] == [
        "one\ntwo\nthree", "four", "/clear", "five\nsix\n/bye",
    ]  # fmt: skip
    assert "The conversation is empty." in notes and "did you mean /clear?" in notes
    shown = {line[:18].strip(): line[18:].strip() for line in notes.splitlines()}
    assert (shown["seed"], shown["temperature"], shown["top_p"]) == ("7", "0.0 (default)", "none (default)")
    assert (shown["model"], shown["conversation"], shown["system message"]) == ("echo", "6 turns", "none")
    assert all(notes.count(f"\n{name} ") == 2 + (name == "seed") for name in settings.NAMES)
    chat("/bye", "never")


def test_history_that_does_not_fit_is_left_out_from_the_oldest_turn_with_a_note(chat):
    session, echo, _, _ = chat("one", "two", "three")
    honest = echo.answer

    def answer(messages, options):
        if len(messages) > 3:
            raise ContextFullError("too long")
        yield from honest(messages, options)

    echo.answer, session._notes = answer, Console(file=io.StringIO(), width=200)
    assert session.ask("four") and session.ask("five")
    assert [[m["content"] for m in asked[0]] for asked in echo.asked[3:]] == [
        ["three", "THREE ", "four"], ["four", "FOUR ", "five"],
    ]  # fmt: skip
    assert contents(session)[:2] == ["one", "ONE "] and len(contents(session)) == 10
    told = session._notes.file.getvalue()
    assert re.findall(r"the oldest (\d) turns are no longer sent", told) == ["4", "6"]
    session.command("/undo")
    assert session.conversation.left_out == 0


def test_a_question_that_is_too_long_alone_takes_no_earlier_turn_out_of_the_conversation(chat):
    session, echo, _, _ = chat("one", "two")
    honest = echo.answer

    def answer(messages, options):
        if "long" in messages[-1]["content"]:
            raise ContextFullError("full") if len(messages) > 1 else AnswerError("too long alone")
        yield from honest(messages, options)

    echo.answer = answer
    assert not session.ask("a long question")
    assert session.ask("three")
    assert [message["content"] for message in echo.asked[-1][0]] == ["one", "ONE ", "two", "TWO ", "three"]


def test_one_answer_is_counted_as_one(chat):
    *_, notes = chat("/stats", "one", "/stats")
    assert "0 answers: " in notes and "1 answer: 1 tokens" in notes


@pytest.mark.parametrize(
    ("tokens", "context", "told"),
    [
        (8, 24, "context of 24 tokens is full (/undo or /clear makes room)"),
        (8, 25, "/set max_new_tokens"),
        (8, 0, "/set"),
    ],
)
def test_a_full_context_is_not_blamed_on_the_maximum_of_tokens(tokens, context, told):
    text = str(Figures(tokens, 1, 16, finish_reason="length", context=context))
    assert told in text
    assert ("max_new_tokens" in text) == ("context" not in told)


def wrapped(text, width, cuts):
    made, out = WordWrap(lambda: width), ""
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        out += "".join(piece for piece, _ in made.take(text[start:end]))
    return out + "".join(piece for piece, _ in made.finish())


@pytest.mark.parametrize("seed", range(20))
def test_words_stay_whole_at_the_margin_whatever_the_pieces(seed):
    rng, width = random.Random(seed), 12
    words = ["".join(rng.choices("abcdef", k=rng.randint(1, 9))) for _ in range(40)]
    text = "".join(word + rng.choice([" ", " ", "\n", "  "]) for word in words)
    whole = wrapped(text, width, [])
    assert wrapped(text, width, sorted(rng.choices(range(len(text)), k=30))) == whole
    assert whole.split() == words
    assert max(len(line) for line in whole.splitlines()) <= width
    lines = whole.split("\n")
    for line, following in pairwise(lines):
        first = following.split(" ")[0]
        if first and f"{line.rstrip()} {first}" in text:  # a break that wrapping made
            assert len(f"{line.rstrip()} {first}") > width


def test_what_cannot_be_wrapped_by_words_is_shown_as_it_comes():
    assert wrapped("ab " + "x" * 30 + "\ncd", 10, [7]) == "ab \n" + "x" * 30 + "\ncd"
    assert wrapped("你好世界你好", 6, [2]) == "你好世\n界你好"
    code = "```\nx = 1  # a comment that is longer than the line\n```\n"
    assert wrapped(code, 10, [9]) == code
    styled = WordWrap(lambda: 10)
    assert [*styled.take("dra", "green"), *styled.take("ft", ""), *styled.take(" ", "")] == [
        ("dra", "green"), ("ft", ""), (" ", ""),
    ]  # fmt: skip


def narrow_terminal():
    file = io.StringIO()
    file.isatty = lambda: True
    return Console(file=file, width=20, color_system=None)


def test_code_stays_code_where_a_loop_in_it_is_taken_back():
    terminal, echo = narrow_terminal(), Echo()
    parts = (
        Part("```\ny = 22"), Part("", taken_back=2, note="again"), Part("3 + 4 + 5 + 6 + 7 + 8\n```\n"),
        Part("and words that are wrapped"), Part("", figures=Figures()),
    )  # fmt: skip
    echo.answer = lambda *_: (part for part in parts)
    session = Session(echo, LineReader(io.StringIO("code\n")), terminal, Console(file=io.StringIO()))
    session.run()
    assert "\ny = 3 + 4 + 5 + 6 + 7 + 8\n```\nand words that are \nwrapped\n" in terminal.file.getvalue()


def test_a_chat_on_a_terminal_breaks_no_word(chat):
    terminal = narrow_terminal()
    session = Session(Echo(), LineReader(io.StringIO("alpha beta gamma delta epsilon\n")), terminal, terminal)
    session.run()
    lines = terminal.file.getvalue().splitlines()
    assert {"ALPHA", "BETA", "GAMMA", "DELTA", "EPSILON"} < set(" ".join(lines).split())
    assert all(len(line) <= 20 for line in lines) and "lists the commands" in " ".join(" ".join(lines).split())


def test_a_retry_that_fails_keeps_what_was_there(chat):
    session, echo, _, _ = chat("one")
    echo.answer = lambda messages, options: (_ for _ in ()).throw(AnswerError("down"))
    session.command("/retry")
    assert contents(session) == ["one", "ONE "]


def test_settings_are_checked_and_sent(chat):
    session, echo, _, notes = chat(
        "/set temperature 0.5", "/set max-tokens=7", "/set stop \"\\n\"", "/set top_p 7", "/set temprature 1",
        "/set seed x", "/set seed", "/set", "one", "/set temperature none", "two", "/resett", "/etc/passwd is a file",
    )  # fmt: skip
    assert echo.asked[0][1] == {"temperature": 0.5, "max_new_tokens": 7, "stop": ["\n"]}
    assert echo.asked[1][1] == {"max_new_tokens": 7, "stop": ["\n"]}
    for told in ("top_p must lie in", "did you mean temperature?", "seed needs an integer", "/set seed VALUE",
                 "did you mean /reset?", "no command /etc/passwd"):  # fmt: skip
        assert told in notes
    assert len(echo.asked) == 2
    assert session.options == {"max_new_tokens": 7, "stop": ["\n"]}


def test_control_characters_of_an_answer_do_not_reach_the_terminal():
    assert printable("a\x1b[2Jb\x07\tc\n\x9bd\x7fé") == "a[2Jb\tc\nd" + "é"


def detected(tokens):
    detector = LoopDetector()
    return next(((n, start) for n, token in enumerate(tokens, 1) if (start := detector.push(token)) is not None), None)


@pytest.mark.parametrize("period", [1, 7, MAX_PERIOD])
def test_a_loop_is_found_after_three_periods_at_most_once_it_is_long_enough(period):
    opening, loop = [1000, 1001, 1002], list(range(period))
    seen = max(3 * period, MIN_REPEATED + period)
    assert detected(opening + loop * 100) == (len(opening) + seen, len(opening) + period)
    assert detected(opening + loop * 2 + [2000] + loop * 2) is None
    assert detected(list(range(MAX_PERIOD + 1)) * 10) is None


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny.save_checkpoint(tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture(scope="module")
def model(path):
    return orthrus.load(path)


def whole(parts):
    text, figures, taken_back = "", None, 0
    for part in parts:
        taken_back += part.taken_back
        text, figures = text[: len(text) - part.taken_back] + part.text, part.figures
    return text, figures, taken_back


def test_greedy_decoding_that_loops_goes_on_before_the_loop_with_a_penalty(model):
    """Both halves are plain decoding: of the prompt, and of the prompt with what came before the loop."""
    bias = {"logit_bias": {65: 30.0}}
    answers = LocalAnswers(model, {"cycle": "two-pass"}, bias)
    messages = [{"role": "user", "content": "hi"}]
    text, figures, taken_back = whole(answers.answer(messages, {"max_new_tokens": 80}))
    request = model.request(messages, {"max_new_tokens": 80, **bias})
    plain = model.generate(messages, max_new_tokens=80, cycle="ar", **bias)
    _, loop = detected(plain.tokens)
    again = replace(
        request, prompt=(*request.prompt, *plain.tokens[:loop]), stop=replace(request.stop, max_new_tokens=80 - loop),
        sampling=replace(request.sampling, repetition_penalty=ANTI_LOOP_PENALTIES[0]),
    )  # fmt: skip
    *_, last = model.run([again], model.decoding_config({"cycle": "ar"}))
    assert taken_back > 0
    assert text == model.decode([*plain.tokens[:loop], *last.sequence.tokens])
    assert figures.tokens == loop + len(last.sequence.tokens)
    assert figures.cached_tokens == 0
    assert whole(answers.answer(messages, {"max_new_tokens": 80, "repetition_penalty": 1.0}))[0] == plain.text


def test_the_second_turn_keeps_the_prefix_and_a_context_that_is_full_fails_the_turn(model):
    answers = LocalAnswers(model, {"cycle": "two-pass"}, {})
    messages = [{"role": "user", "content": "hi " * 100}]
    text, *_ = whole(answers.answer(messages, {"max_new_tokens": 8}))
    messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "again"}]
    _, figures, _ = whole(answers.answer(messages, {"max_new_tokens": 8}))
    assert figures.cached_tokens > 200
    with closing(answers.answer(messages, {"max_new_tokens": 8})) as parts:
        next(parts)
    with pytest.raises(AnswerError, match="this question alone is too long"):
        whole(answers.answer([{"role": "user", "content": "x" * 5000}], {}))
    for length in (5000, 1500):  # too long, and too long to leave a quarter of the context to the answer
        with pytest.raises(ContextFullError, match="context"):
            whole(answers.answer([*messages, {"role": "user", "content": "x" * length}], {"max_new_tokens": 2000}))
    assert whole(answers.answer(messages, {"max_new_tokens": 8}))[1].finish_reason
    assert answers._engine.unfinished == 0


def test_lines_that_are_piped_in_are_turns(run, path):
    code, out, err = run("chat", "--model", path, "--cycle", "two-pass", "--max-tokens", 3, stdin="one\ntwo\n/sett\n")
    assert code == 0
    assert len(re.findall(r"3 tokens in \d passes", err)) == 2
    assert "did you mean /set?" in err
    assert "tokens" not in out


@pytest.fixture(scope="module")
def server():
    made = ScriptedServer()
    with served(made.app) as made.address:
        yield made


def test_a_server_answers_without_torch(server):
    """In a process of its own, where nothing has imported torch yet."""
    code = (
        "import sys; from orthrus import cli; sys.argv = ['orthrus', 'chat', *sys.argv[1:]]\n"
        "try: cli.main()\nfinally: print('torch' in sys.modules, end='')"
    )
    asked = "hello\n429\nbreak\n/set temperature 0.5\nagain\nlong\n"
    arguments = [
        sys.executable,
        "-c",
        code,
        "--url",
        server.address + "v1",
        "--api-key",
        "secret",
        "--system",
        "Short.",
    ]
    done = subprocess.run(arguments, input=asked, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == f"{TEXT}\n\nHere are two <b>tags</b>\n{TEXT}\n{TEXT}\nFalse"
    assert "8 tokens in 4 passes (2.00 per pass)" in done.stderr
    assert "scripted 429 (try again in 30 s) This turn is dropped." in done.stderr
    assert "the connection to" in done.stderr
    assert server.keys[-1] == "Bearer secret"
    assert "the oldest 4 turns are no longer sent" in done.stderr
    assert [m["content"] for m in server.bodies[-1]["messages"]] == ["Short.", "again", TEXT, "long"]
    body = server.bodies[-4]
    assert [m["content"] for m in body["messages"]] == [
        "Short.", "hello", TEXT, "break", "Here are two <b>tags</b>", "again",
    ]  # fmt: skip
    assert (body["model"], body["temperature"], "max_tokens" in body) == ("scripted", 0.5, False)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--url", "http://127.0.0.1:9/"], "no server answers at http://127.0.0.1:9"),
        (["--url", "localhost:8000"], "--url needs an address such as http://"),
        (["--url", "http://127.0.0.1:9", "--cycle", "ar"], "with --url the model is the server's"),
        (["--temperature", "-1"], "temperature must lie in"),
    ],
)
def test_what_cannot_work_is_refused_before_the_chat(run, arguments, told):
    code, _, err = run("chat", *arguments)
    assert code == 2
    assert told in err


def test_a_paste_is_one_turn_and_history_is_private(tmp_path, monkeypatch):
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    monkeypatch.setenv("ORTHRUS_DATA", str(tmp_path / "data"))
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        reader = PromptReader(("/help",), history_file())
        pipe.send_text("\x1b[200~one\ntwo\x1b[201~ and\x1b\rthree\r")
        assert reader.read() == "one\ntwo and\nthree"
        pipe.send_text('"""one\rtwo"""\r')
        assert reader.read() == '"""one\ntwo"""'
        pipe.send_text("\x1b[A\x1b[A\x1b[A\r")  # recall, past the two lines of the last turn
        assert reader.read() == "one\ntwo and\nthree"
        pipe.send_text("\x03")
        with pytest.raises(KeyboardInterrupt):
            reader.read()
        pipe.send_text("\x04")
        with pytest.raises(EOFError):
            reader.read()
    assert stat.S_IMODE(history_file().stat().st_mode) == 0o600
    assert "+one" in history_file().read_text()


READY = "\x1b[?2004h"
"""The terminal is told to bracket pastes: the prompt waits."""


class Terminal:
    """A process on a pseudo-terminal."""

    def __init__(self, *arguments, **environment):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(sys.executable, [sys.executable, "-m", "orthrus", *arguments], {**os.environ, **environment})
        self.seen = ""

    def until(self, text):
        """Read until the text has been shown; what was read before it is forgotten."""
        while text not in self.seen:
            assert select.select([self.fd], [], [], 60)[0], f"{text!r} does not come after {self.seen!r}"
            self.seen += os.read(self.fd, 4096).decode(errors="replace")
        self.seen = self.seen[self.seen.index(text) + len(text) :]

    def type(self, text):
        os.write(self.fd, text.encode())


def test_in_a_terminal_ctrl_c_stops_an_answer_and_ctrl_d_leaves(server, tmp_path):
    chat = Terminal(
        "chat", "--url", server.address, TERM="xterm", PROMPT_TOOLKIT_NO_CPR="1", ORTHRUS_DATA=str(tmp_path)
    )  # fmt: skip
    chat.until("Ctrl-D leaves.")
    chat.until(READY)
    chat.type("endless\r")
    chat.until(" more more")
    chat.type("\x03")
    chat.until("stopped; the text so far is part of the conversation")
    chat.until(READY)
    chat.type("\x1b[200~hello\nthere\x1b[201~\r")
    chat.until("8 tokens in 4 passes")
    chat.until(READY)
    assert server.bodies[-1]["messages"][-1]["content"] == "hello\nthere"
    assert [message["role"] for message in server.bodies[-1]["messages"]] == ["user", "assistant", "user"]
    chat.type("\x04")
    assert os.waitstatus_to_exitcode(os.waitpid(chat.pid, 0)[1]) == 0
