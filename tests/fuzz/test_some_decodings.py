"""Some fixed cases of the decoding fuzz, and cases for kernels that need no C compiler."""

from __future__ import annotations

import cases
import checks
import decoding
import pytest

QUICK = (1, 2, 7, 14, 16, 20, 28, 82, 106)
"""Fast cases of seed 0 that cover every kind of kernels, Python threads and poisoned views."""
SAME = (1, 7, 14)
"""Those of `QUICK` that differ from the case of this number in the first minute by more threads alone."""
FIRST_MINUTE = [number for number in range(18) if number not in SAME]
"""The cases of seed 0 that `make fuzz` runs in its first minute on two quiet cores: whoever changes what the fuzz is
made of sees here whether it still runs."""
WITHOUT_COMPILER = (("torch", "fp32"), ("torch in blocks", "bf16"), ("torch unpacked", "bf16"))


@pytest.mark.parametrize("number", FIRST_MINUTE)
def test_the_cases_with_which_the_fuzz_begins_have_no_failures(number):
    findings = checks.run(cases.on_threads(cases.make(0, number), 1))
    assert findings.failures == []
    assert findings.counts["decodings"] > 0


@pytest.mark.parametrize("number", QUICK)
def test_a_case_of_the_fuzz_has_no_failures(number):
    findings = checks.run(cases.make(0, number, threads=(1, 2)))
    assert findings.failures == []
    assert findings.counts["decodings"] > 0


@pytest.mark.parametrize("number", SAME)
def test_a_case_that_runs_once_is_the_same_on_one_thread(number):
    on_one = [cases.on_threads(case, 1) for case in (cases.make(0, number), cases.make(0, number, threads=(1, 2)))]
    assert on_one[0] == on_one[1]


@pytest.mark.parametrize(("kernels", "dtype"), WITHOUT_COMPILER)
def test_cases_without_c_kernels_equal_the_oracle(kernels, dtype):
    only = {"kernels": [kernels], "dtypes": [dtype], "threads": (1,), "longest": 600, "poison": False}
    findings = checks.run(cases.make(2, f"{kernels} {dtype}", **only))
    assert findings.failures == []
    assert findings.counts["decodings"] > 0


def test_a_wrong_answer_is_reported_with_the_command_that_reproduces_it(monkeypatch, capsys):
    truth = checks.autoregress

    def off_by_one(*arguments):
        result = truth(*arguments)
        return type(result)([token + 1 for token in result.tokens], result.finish_reason, None)

    monkeypatch.setattr(checks, "autoregress", off_by_one)
    assert decoding.main(["--case", "2"]) == 1
    assert "expected" in capsys.readouterr().out
    run = decoding.Run(0, 2)
    run._handle({"begins": 2})
    run._handle({"counts": {"cases": 1}, "failures": ["wrong"]})
    assert "python tests/fuzz/decoding.py --seed 0 --case 2\nwrong" in capsys.readouterr().out
    assert run.until(0) == 1
    assert "1 cases" in capsys.readouterr().out
