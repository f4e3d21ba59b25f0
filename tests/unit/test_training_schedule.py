"""Learning-rate schedules, and runs that are extended: the bits are those of a run that was longer from the start."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from test_training_run import assert_same, checkpoint, config, corpus, train, trained

from orthrus.checkpoint import adapter as adapters
from orthrus.training import run_file
from orthrus.training.metrics import read
from orthrus.training.schedule import decay_start, rate_at
from orthrus.training.tasks import Validation
from orthrus.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("undrawn")


def test_the_learning_rate_rises_and_falls():
    settings = config(steps=100, warmup=0.1, final_rate=0.1)
    rates = [rate_at(step, settings, 1.0) for step in range(100)]
    assert rates[:11] == sorted(rates[:11])
    assert max(rates) == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.1 < rates[-1] < 0.11


def test_the_rate_of_wsd_is_stable_until_its_decay():
    settings = config(steps=100, warmup=0.1, final_rate=0.1, schedule="wsd", decay_share=0.25)
    rates, longer = (
        [rate_at(step, made, 1.0) for step in range(made.total_steps)]
        for made in (settings, replace(settings, extend=60))
    )
    assert decay_start(settings) == 75
    assert set(rates[10:76]) == {1.0}
    assert rates[75:] == sorted(rates[75:], reverse=True)
    assert 0.1 < rates[-1] < 0.12
    assert longer[:75] == rates[:75]
    assert longer[:121].count(1.0) == 111
    assert longer[119] == 1.0 > longer[121]


WSD = {"schedule": "wsd", "decay_share": 0.5}
"""Of 6 steps the last 3 decay."""


def records(directory):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in read(directory)]


@pytest.mark.parametrize(("until", "head"), [(2, {}), (3, {}), (6, {}), (4, {"head_units": 16})])
def test_an_extended_run_ends_with_the_bits_of_one_that_was_longer_from_the_start(bare, jsonl, tmp_path, until, head):
    """Wherever it was killed before, with and without its decay begun, and killed again before its new decay."""
    whole = train(bare, jsonl, tmp_path / "whole", **WSD, **head, extend=4)
    train(bare, jsonl, tmp_path / "parts", until=until, **WSD, **head)
    begun = train(bare, jsonl, tmp_path / "parts", until=4, **WSD, **head, extend=4)
    assert begun.rewound == (until > 3)
    again = train(bare, jsonl, tmp_path / "parts", **WSD, **head, extend=4)
    assert (again.done, again.rewound) == (10, False)
    assert_same(trained(whole), trained(again))
    assert records(tmp_path / "parts") == records(tmp_path / "whole")


def test_a_run_is_extended_more_than_once_and_its_decay_may_change(bare, jsonl, tmp_path):
    whole = train(bare, jsonl, tmp_path / "whole", schedule="wsd", decay_share=0.25, extend=6)
    train(bare, jsonl, tmp_path / "parts", **WSD)
    train(bare, jsonl, tmp_path / "parts", **WSD, extend=2)
    again = train(bare, jsonl, tmp_path / "parts", schedule="wsd", decay_share=0.25, extend=6)
    assert_same(trained(whole), trained(again))
    assert json.loads((tmp_path / "parts" / "run.json").read_text()) == json.loads(
        (tmp_path / "whole" / "run.json").read_text()
    )


def test_an_extension_that_was_killed_while_it_began_begins_again(bare, jsonl, tmp_path, monkeypatch):
    whole = train(bare, jsonl, tmp_path / "whole", **WSD, extend=4)
    train(bare, jsonl, tmp_path / "parts", **WSD)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(run_file, "write", killed)
        train(bare, jsonl, tmp_path / "parts", **WSD, extend=4)
    assert_same(trained(whole), trained(train(bare, jsonl, tmp_path / "parts", **WSD, extend=4)))


def test_the_best_adapter_of_a_decayed_run_stays_until_a_better_one_comes(bare, jsonl, tmp_path):
    """A stable rate decodes worse than a decayed one for a while."""
    lengths = {3: 1.0, 6: 2.0, 9: 1.9, 12: 2.1}

    def best(until, **changes):
        settings = config(**WSD, **changes)
        made = Trainer(
            checkpoint(bare), settings, corpus(jsonl, settings), tmp_path / "run",
            lambda: Validation(lengths[made.done], 1.2, [0.9, 0.4]),
        )  # fmt: skip
        for progress in made.run():
            if progress.step == until:
                break
        return made.best, adapters.read_config(tmp_path / "run" / "best").provenance["step"]

    assert best(6) == (2.0, 6)
    assert best(9, extend=6) == (2.0, 6)
    assert best(12, extend=6) == (2.1, 12)


def test_an_extension_that_cannot_be_is_refused(bare, jsonl, tmp_path):
    train(bare, jsonl, tmp_path / "run", **WSD, extend=2)
    run = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(ValueError, match="was extended by 2 steps; --extend 2 goes on"):
        train(bare, jsonl, tmp_path / "run", **WSD)
    with pytest.raises(ValueError, match=r"recipe.decay_share was 0.5, is 0.4"):
        train(bare, jsonl, tmp_path / "run", schedule="wsd", decay_share=0.4, extend=2)
    with pytest.raises(ValueError, match="would begin after step 3, and its earliest state is that of step 4"):
        train(bare, jsonl, tmp_path / "run", schedule="wsd", decay_share=0.7, extend=4)
    (tmp_path / "run" / "stable.safetensors").unlink()
    with pytest.raises(ValueError, match="its earliest state is that of step 8"):
        train(bare, jsonl, tmp_path / "run", **WSD, extend=4)
    assert (tmp_path / "run" / "run.json").read_bytes() == run
