"""Distillation: killed runs resume with the same shards, and which prompts are kept."""

from __future__ import annotations

import json
import lzma
import random
import time

import processes
import pytest
import tiny

from orthrus.bench import tasks
from orthrus.checkpoint.adapter import BackboneIdentity
from orthrus.training import chat, data
from orthrus.training.config import DistillConfig, TrainConfig
from orthrus.training.distill import Distillation, Reply, seed_of
from orthrus.training.prompts import Conversation, RawText, conversations_in, excluded_ngrams, word_ngrams
from orthrus.training.shards import DamagedShardError, packed, read_manifest, read_shard, unfinished

TOKENIZER = tiny.tokenizer(tiny.CHAT)
ENDS = frozenset([tiny.END])


class KilledError(Exception):
    pass


def respond(questions, *, silent=()):
    """A fake backbone: letters that depend on prompt and seed only, out of order, some cut by the length limit."""
    for index in reversed(range(len(questions))):
        rng = random.Random(f"{questions[index].prompt}{questions[index].seed}")
        text = "" if index in silent else "".join(rng.choices("abcdefgh ", k=rng.randrange(4, 30))) + "."
        stopped = len(text) < 25
        yield index, Reply([*ids_of(text), *([tiny.END] if stopped else [])], text, "stop" if stopped else "length")


def distillation(directory, answer=respond, excluded=frozenset(), backbone="a" * 64, **settings):
    settings = {"shard_size": 4, "max_prompt_tokens": 120, **settings}
    identity = {"id": "toy", "revision": None, "sha256": backbone}
    return Distillation(directory, DistillConfig(**settings), TOKENIZER, ENDS, identity, answer, frozenset(excluded))


def given(count=10):
    return [Conversation(f"r{n}", [{"role": "user", "content": f"question {n}"}]) for n in range(count)]


def files(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def text_of(tokens):
    """Decoded by the tokenizer, since the letters of byte-level tokens are not their bytes."""
    return TOKENIZER.decode(tokens, skip_special_tokens=True)


def ids_of(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def records(directory):
    return [r for entry in read_manifest(directory)["shards"] for r in read_shard(directory, entry)]


@pytest.mark.parametrize("prompts", ["given", "self-written"])
@pytest.mark.parametrize("kill_at", range(1, 6))
def test_a_killed_run_ends_up_with_the_same_bytes(tmp_path, prompts, kill_at):
    asked = given() if prompts == "given" else None
    list(distillation(tmp_path / "whole").run(asked, 10))
    calls = 0

    def failing(questions):
        nonlocal calls
        calls += 1
        if calls == kill_at:
            raise KilledError
        return respond(questions)

    try:
        list(distillation(tmp_path / "killed", failing).run(asked, 10))
    except KilledError:
        list(distillation(tmp_path / "killed").run(asked, 10))
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    ids = [record["id"] for record in records(tmp_path / "whole")]
    assert len(ids) == len(set(ids)) > 4


def test_a_resumed_run_knows_the_prompts_that_left_no_record(tmp_path):
    """Neither a prompt without an answer nor a turn after a cut-off answer is in the records, and both were asked."""

    def answer(questions):
        for n, question in enumerate(questions):
            text = "" if text_of(question.prompt).count("silence") else "cut off"
            yield n, Reply(ids_of(text), text, "length")

    turns = [["a", "b"], ["a"], ["silence"], ["A"], ["silence"], ["a", "b"]]
    asked = [
        Conversation(f"r{n}", [{"role": "user", "content": text} for text in texts]) for n, texts in enumerate(turns)
    ]
    list(distillation(tmp_path / "whole", answer, shard_size=1).run(asked, 6))
    dropped = [entry["dropped"] for entry in read_manifest(tmp_path / "whole")["shards"]]
    unanswered, duplicate = {"unanswered or too long": 1}, {"duplicate": 1}
    assert dropped == [{}, {}, unanswered, duplicate, duplicate, duplicate]
    for shards in range(1, 6):
        resumed = tmp_path / f"after-{shards}"
        run = distillation(resumed, answer, shard_size=1).run(asked, 6)
        for _ in range(shards):
            next(run)
        list(distillation(resumed, answer, shard_size=1).run(asked, 6))
        assert files(resumed) == files(tmp_path / "whole")


def slowly(questions):
    for answer in respond(questions):
        time.sleep(0.002)
        yield answer


def distil_slowly(directory):
    list(distillation(directory, slowly).run(given(120), 120))


def test_killed_at_random_moments_a_run_ends_with_the_same_bytes(tmp_path, request):
    """kill -9, also while a shard or the manifest is written. What a write had begun may be left beside them."""
    rng, killed = random.Random(0), tmp_path / "killed"
    for _ in range(20 if request.config.getoption("--full") else 4):
        seen = len(list(killed.glob("shard-*.jsonl")))
        process = processes.CONTEXT.Process(target=distil_slowly, args=(killed,), daemon=True)
        process.start()
        while process.is_alive() and len(list(killed.glob("shard-*.jsonl"))) <= seen:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        process.kill()
        process.join()
    list(distillation(killed).run(given(120), 120))
    list(distillation(tmp_path / "whole").run(given(120), 120))
    whole = files(tmp_path / "whole")
    assert {name: files(killed)[name] for name in whole} == whole


def test_a_shard_cut_in_half_is_named_and_written_again(tmp_path):
    list(distillation(tmp_path).run(given(), 10))
    whole = files(tmp_path)
    shard = tmp_path / "shard-00001.jsonl"
    shard.write_bytes(whole[shard.name][: len(whole[shard.name]) // 2])
    with pytest.raises(DamagedShardError, match=r"shard-00001.jsonl: missing or damaged"):
        records(tmp_path)
    list(distillation(tmp_path).run(given(), 10))
    assert files(tmp_path) == whole


@pytest.mark.parametrize("prompts", ["given", "self-written"])
def test_progress_counts_prompts(tmp_path, prompts):
    """Each prompt is counted once, and each shard reports its last prompt and whether an earlier run wrote it."""
    turns = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}, {"role": "system", "content": "c"}]
    asked = [*given(8), given(1)[0], Conversation("long", [{"role": "user", "content": "x" * 200}])]
    asked[3] = Conversation("two", turns)
    reported = []
    run = distillation(tmp_path)
    run.progressed = reported.append
    shards = list(run.run(asked if prompts == "given" else None, 10))
    assert reported == sorted(reported)
    assert len(set(reported)) > 4
    assert reported[-1] == 10
    assert [(shard.prompts, shard.existing) for shard in shards] == [(4, False), (8, False), (10, False)]
    (tmp_path / "shard-00001.jsonl").unlink()
    again = list(distillation(tmp_path).run(asked if prompts == "given" else None, 10))
    assert [shard.existing for shard in again] == [True, False, True]
    assert [shard.entry for shard in again] == [shard.entry for shard in shards]


def test_an_unfinished_run_is_reported(tmp_path):
    run = distillation(tmp_path).run(given(), 10)
    for done in (4, 8):
        next(run)
        assert unfinished(read_manifest(tmp_path)) == (done, 10)
        held = TrainConfig(held_out=1)
        assert data.load([tmp_path], TOKENIZER, ENDS, held).notices[0] == (
            f"{tmp_path} holds {done} of 10 prompts: the distillation is unfinished; run the same `orthrus distill` to"
            " go on"
        )
    next(run)
    assert unfinished(read_manifest(tmp_path)) is None
    assert data.load([tmp_path], TOKENIZER, ENDS, held).notices == []


@pytest.mark.parametrize(
    "change",
    [
        {"shards": [{"file": "../x.jsonl", "sha256": ""}]},
        {"shards": [{"file": 5, "sha256": ""}]},
        {"shards": [{}]},
        {"shards": 5},
        {"settings": []},
        {"backbone": {}},
        {"format": 2},
    ],
    ids=str,
)
def test_a_manifest_of_the_wrong_shape_is_named(tmp_path, change):
    list(distillation(tmp_path).run(given(3), 3))
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=r"manifest.json: not a manifest of distilled shards"):
        read_manifest(tmp_path)


def test_shards_of_another_model_are_noticed_and_of_another_vocabulary_refused(tmp_path):
    run, held = distillation(tmp_path), TrainConfig(block_size=4, trained_rows=4, sequence_length=200, held_out=1)
    run.backbone["tokenizer_sha256"] = "t"
    list(run.run(given(), 10))

    def notices(sha256, tokenizer):
        backbone = BackboneIdentity("mine", None, sha256, tokenizer)
        return data.load([tmp_path], TOKENIZER, ENDS, held, backbone).notices

    assert notices("a" * 64, "t") == []
    assert "another backbone (toy)" in notices("b" * 64, "t")[0]
    with pytest.raises(ValueError, match="written by toy, whose vocabulary is another than that of mine"):
        notices("a" * 64, "u")


def test_records_carry_their_tokens_and_spans(tmp_path):
    list(distillation(tmp_path).run(given(3), 3))
    for record in records(tmp_path):
        (start, end) = record["spans"][0]
        user, answer = record["messages"]
        assert text_of(record["tokens"][:start]).endswith("<assistant>")
        reply = record["tokens"][start:end]
        assert end == len(record["tokens"])
        assert text_of(reply) == answer["content"]
        assert (reply[-1] == tiny.END) == (record["finish_reason"] == "stop")
        assert user["role"] == "user"


def test_every_turn_of_a_user_is_answered_in_its_place(tmp_path):
    turns = [{"role": "system", "content": "be brief"}, *({"role": "user", "content": f"q{n}"} for n in range(3))]
    list(distillation(tmp_path, seed=5).run([Conversation("long", turns)], 1))
    (record,) = records(tmp_path)
    roles = [m["role"] for m in record["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user", "assistant"][: len(roles)]
    assert len(roles) >= 3
    answers = [m["content"] for m in record["messages"] if m["role"] == "assistant"]
    for (start, end), text in zip(record["spans"], answers, strict=True):
        assert text_of(record["tokens"][start:end]) == text


def test_dropped_prompts_are_counted(tmp_path):
    prompts = [
        "same",
        " Same ",
        "x" * 200,
        "one two three four five six seven eight nine ten eleven twelve thirteen!",
        "?",
    ]
    asked = [Conversation(f"r{n}", [{"role": "user", "content": text}]) for n, text in enumerate(prompts)]
    excluded = word_ngrams("Zero one two three, four five six seven eight nine ten eleven twelve thirteen fourteen")
    run = distillation(tmp_path, lambda q: respond(q, silent=[len(q) - 1]), excluded, shard_size=9)
    (shard,) = run.run(asked, len(asked))
    entry = shard.entry
    assert entry["dropped"] == {"duplicate": 1, "excluded": 1, "unanswered or too long": 2}
    assert entry["records"] == len(records(tmp_path)) == 1


def test_distilled_records_are_a_task(tmp_path):
    list(distillation(tmp_path).run(given(), 10))
    expected = [record["tokens"][: record["spans"][0][0]] for record in records(tmp_path)]
    prompts = tasks.load(str(tmp_path))
    assert [prompt.prompt for prompt in prompts] == expected
    assert {prompt.part for prompt in prompts} == {tmp_path.name}
    with pytest.raises(ValueError, match="no manifest"):
        tasks.load(str(tmp_path.parent))


def test_a_packed_file_trains_as_its_directory(tmp_path):
    directory, file = tmp_path / "run", tmp_path / "run.jsonl.xz"
    list(distillation(directory).run(given(), 10))
    file.write_bytes(packed(directory))
    assert len(file.read_bytes()) < sum(map(len, files(directory).values())) / 2
    config = TrainConfig(block_size=4, trained_rows=4, sequence_length=96, held_out=2)
    from_directory, from_file = (data.load([path], TOKENIZER, ENDS, config) for path in (directory, file))
    assert from_directory.digest == from_file.digest
    assert [prompt.prompt for prompt in tasks.load(str(file))] == [p.prompt for p in tasks.load(str(directory))]


@pytest.mark.parametrize("damage", [lambda b: b[:-20], lambda b: b"x" + b, lambda b: lzma.compress(b"{}\n{}\n")])
def test_a_damaged_packed_file_is_named(tmp_path, damage):
    list(distillation(tmp_path / "run").run(given(), 10))
    file = tmp_path / "run.jsonl.xz"
    file.write_bytes(damage(packed(tmp_path / "run")))
    with pytest.raises(ValueError, match=r"run\.jsonl\.xz: not a packed file"):
        tasks.load(str(file))


@pytest.mark.parametrize(
    ("prompt", "dropped"),
    [
        ("who WROTE Hamlet", True),
        ("Who wrote Hamlet? Explain.", False),
        ("Who wrote", False),
        ("Write a function to reverse words.", True),
        ("Write a function to", False),
        ("Write a function to reverse", True),
        ("Write a function to reverse numbers", False),
    ],
)
def test_a_prompt_of_fewer_than_13_words_is_compared_whole(prompt, dropped):
    statement = "Write a function to reverse words. Your code should pass these tests: assert reverse('a b') == 'b a'"
    excluded = excluded_ngrams("Who wrote Hamlet?") | excluded_ngrams(statement)
    assert excluded.isdisjoint(word_ngrams(prompt)) is not dropped


def test_another_run_does_not_continue_here(tmp_path):
    list(distillation(tmp_path).run(given(), 10))
    with pytest.raises(ValueError, match=r"temperature was 0\.0"):
        list(distillation(tmp_path, temperature=0.5).run(given(), 10))
    with pytest.raises(ValueError, match="another backbone"):
        list(distillation(tmp_path, backbone="b" * 64).run(given(), 10))
    other = distillation(tmp_path)
    other.backbone["dtype"] = "float32"
    with pytest.raises(ValueError, match="written in None"):
        list(other.run(given(), 10))
    with pytest.raises(ValueError, match="prompts_sha256"):
        list(distillation(tmp_path).run(given(9), 10))
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="not a manifest"):
        list(distillation(tmp_path).run(given(), 10))


def test_self_written_turns_begin_with_the_topics(tmp_path):
    list(distillation(tmp_path, topics=("Sing", "Count"), system="be brief").run(None, 12))
    for record in records(tmp_path):
        number = int(record["id"].removeprefix("self-"))
        assert record["messages"][0] == {"role": "system", "content": "be brief"}
        assert record["messages"][1]["content"].startswith(("Sing", "Count")[number % 2])


def test_prompts_are_read_in_every_form():
    lines = [
        {"prompt": "a", "id": 7},
        {"messages": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "no"}]},
        {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "human", "value": "c"},
                {"from": "gpt", "value": "d"},
            ]
        },
    ]
    conversations = conversations_in("\n".join(map(json.dumps, lines)).encode(), "f")
    assert [c.id for c in conversations] == ["7", "line-2", "line-3"]
    assert [[(m["role"], m["content"]) for m in c.messages] for c in conversations] == [
        [("user", "a")], [("user", "b")], [("system", "s"), ("user", "c")],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"}', "line 1: needs `prompt`"),
        ('{"prompt": "  "}', "line 1: there is no user turn with text"),
        ('{"messages": [{"role": "user"}]}', "turn 1: needs `role` and `content`"),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "alien", "content": "b"}]}',
            "line 1: the role 'alien'",
        ),
        ('{"conversations": [{"from": "alien", "value": "x"}]}', "`from` is 'alien'"),
        ("[1]", "not a JSON object"),
        ("", "no records"),
    ],
)
def test_bad_prompts_are_named(line, message):
    with pytest.raises(ValueError, match=message):
        conversations_in(line.encode(), "f")


def test_seeds_follow_from_run_record_and_turn():
    seeds = {seed_of(*parts) for parts in [(0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2)]}
    assert len(seeds) == 4
    assert seed_of(0, "a", 1) in seeds


def test_spans_of_the_assistant_end_with_its_end_token():
    messages = [
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"},
        {"role": "user", "content": "so"}, {"role": "assistant", "content": "ok"},
    ]  # fmt: skip
    encoded = chat.encode(TOKENIZER, messages, ENDS, reply=False)
    turns = [encoded.tokens[a:b] for a, b in encoded.spans]
    assert turns == [[*ids_of("yo"), tiny.END], [*ids_of("ok"), tiny.END]]


def test_a_template_is_required_and_must_extend_earlier_turns():
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    with pytest.raises(ValueError, match="no chat template"):
        chat.encode(tiny.tokenizer(None), messages, ENDS, reply=False)
    with pytest.raises(ValueError, match="no chat template"):
        chat.user_turn_prefix(tiny.tokenizer(None), None, "")
    backwards = tiny.tokenizer("{% for m in messages|reverse %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    with pytest.raises(ValueError, match="does not continue"):
        chat.encode(backwards, messages, ENDS, reply=False)
    with pytest.raises(ValueError, match="no user turn that ends"):
        chat.user_turn_prefix(tiny.tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}"), None, "")


def test_texts_without_a_template_are_asked_by_their_own_tokens(tmp_path):
    """A gap by prefix and suffix, a text that is continued, and a chat, in one run that resumes."""
    lines = [
        {"prompt": "def f(", "suffix": "):"}, {"prompt": "once", "raw": True}, {"prompt": "hello"},
        {"prompt": "", "suffix": "end", "id": 7}, {"prompt": "def f():", "raw": True},
    ]  # fmt: skip
    asked = conversations_in("\n".join(map(json.dumps, lines)).encode(), "gaps.jsonl")
    assert [item.raw for item in asked] == [
        RawText("def f(", "):"), RawText("once"), None, RawText("", "end"), RawText("def f():"),
    ]  # fmt: skip
    prompts = []

    def encode(text):
        prompts.append(text)
        middle = [] if text.suffix is None else [301, *ids_of(text.suffix), 302]
        return [*ids_of(text.prefix), *middle], frozenset([303, 302]) if middle else frozenset()

    questions = []

    def answer(batch):
        questions.extend(batch)
        return respond(batch)

    whole = distillation(tmp_path / "whole", answer, shard_size=1)
    whole.encode_raw = encode
    list(whole.run(asked, 5))
    written = {record["id"]: record for record in records(tmp_path / "whole")}
    assert list(written) == ["line-1", "line-2", "line-3", "7"]  # the last equals the first but for its gap
    gap, chat = written["line-1"], written["line-3"]
    assert gap["tokens"][: gap["spans"][0][0]] == [*ids_of("def f("), 301, *ids_of("):"), 302]
    assert [question.stop_token_ids for question in questions] == [(302, 303), (), (), (302, 303)]
    assert gap["tokens"][gap["spans"][0][0] :] and len(gap["spans"]) == 1
    assert chat["tokens"][0] == ids_of("<user>")[0]
    again = distillation(tmp_path / "whole", answer, shard_size=1)
    again.encode_raw = encode
    assert len(list(again.run(asked, 5))) == 5
    assert len(questions) == 4


@pytest.mark.parametrize(
    "line", [{"prompt": "a", "suffix": 3}, {"suffix": "a"}, {"prompt": " ", "suffix": ""}, {"raw": True, "prompt": [1]}]
)
def test_a_gap_of_the_wrong_form_is_refused(line):
    with pytest.raises(ValueError, match=r"gaps.jsonl, line 1: `suffix` and `raw` need a `prompt`"):
        conversations_in(json.dumps(line).encode(), "gaps.jsonl")
