"""Benchmark tasks and JSONL prompts."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from orthrus.bench import measure, tasks
from orthrus.decoding.statistics import Statistics
from orthrus.prompt_files import Gap


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gsm8k", 1319),
        ("humaneval", 164),
        ("math500", 500),
        ("mbpp", 500),
        ("spec_bench", 480),
        ("long_context", 60),
        ("pseudocode", 64),
    ],
)
def test_bundled_tasks_are_complete(name, count):
    prompts = tasks.load(name)
    assert len(prompts) == count == len({p.id for p in prompts})
    assert all(isinstance(p.prompt, str) and p.prompt.strip() for p in prompts)


def test_gaps_to_fill_in_are_a_task(tmp_path):
    prompts = tasks.load("fim")
    assert len(prompts) == 100 == len({p.id for p in prompts})
    assert all(p.prompt.prefix.strip() and p.prompt.suffix.strip() for p in prompts)
    file = tmp_path / "gaps.jsonl"
    file.write_text(json.dumps({"prompt": "a = ", "suffix": "\nb = 2"}))
    assert [p.prompt for p in tasks.load(str(file))] == [Gap("a = ", "\nb = 2")]


def test_a_limit_takes_equally_from_all_parts():
    assert set(Counter(p.part for p in tasks.load("spec_bench", 40)).values()) <= {6, 7}


def test_a_file_can_be_a_task(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(
        json.dumps({"prompt": "a\u2028b"}, ensure_ascii=False)
        + "\n\n"
        + json.dumps({"messages": [{"role": "user", "content": "c"}]})
    )
    prompts = tasks.load(str(path))
    assert [p.prompt for p in prompts] == ["a\u2028b", [{"role": "user", "content": "c"}]]


def test_files_of_aime_and_livecodebench_can_be_tasks(tmp_path):
    path = tmp_path / "others.jsonl"
    path.write_text(
        json.dumps({"id": 3, "problem": "Find n.", "answer": 204}) + "\n" + json.dumps({"question_content": "Sort it."})
    )
    assert [(p.prompt, p.number) for p in tasks.load(str(path))] == [("Find n.", "204"), ("Sort it.", None)]


def test_ledgers_have_the_length_of_their_part():
    sizes = {part: [p.prompt for p in tasks.load("long_context") if p.part == part] for part in ("2k", "40k")}
    assert all(80 < len(p.splitlines()) < 95 for p in sizes["2k"])
    assert all(1650 < len(p.splitlines()) < 1700 for p in sizes["40k"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"prompt": "ok"}\n{"prompt": ', "line 2: not valid JSON"),
        (b"[1]", "line 1: not a JSON object"),
        (b'{"text": "x"}', "line 1: needs `prompt`"),
        (b'{"messages": []}', "line 1: needs `prompt`"),
        (b'{"messages": ["x"]}', "line 1, turn 1: needs `role` and `content`"),
        (b"\xff\xfe", "not UTF-8"),
        (b"\n \n", "no prompts in it"),
    ],
)
def test_the_error_for_a_bad_file_names_its_line(tmp_path, content, message):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        tasks.load(str(path))


def test_the_error_for_an_unknown_task_lists_the_tasks():
    with pytest.raises(ValueError, match="gsm8k, humaneval"):
        tasks.load("gsm9k")


def test_acceptance_pools_over_cycles():
    runs = [Statistics(), Statistics()]
    for run, accepted in zip(runs, ([2, 0, 1], [3]), strict=True):
        run.passes, run.generated = 1, 1
        for kept in accepted:
            run.count_cycle("two-pass", 3, kept)
            run.passes, run.generated = run.passes + 2, run.generated + kept + 1
    pooled = measure.acceptance("all", runs)
    assert pooled.acceptance_length == pytest.approx(6 / 4)
    assert pooled.tpf == pytest.approx((7 + 5) / (7 + 3))
    assert pooled.by_offset == pytest.approx([3 / 4, 2 / 4, 1 / 4])
    assert pooled.interval[0] <= pooled.acceptance_length <= pooled.interval[1]


@pytest.mark.parametrize("settings", [2, 3, 4])
def test_the_order_of_settings_rotates_within_each_part(settings):
    parts = ["a", "b", "c", "d", "e", "f"] * 12
    turns = measure.turns(parts, settings)
    for part in set(parts):
        own = [turn for turn, name in zip(turns, parts, strict=True) if name == part]
        assert [own.count(turn) for turn in range(settings)] == [12 // settings] * settings
    assert set(measure.turns(["a"] * settings, settings)) == set(range(settings))
