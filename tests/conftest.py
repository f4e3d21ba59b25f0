"""What the whole suite shares: determinism, and the option that runs every case of a law."""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import signal
import tempfile
from unittest import mock

import pytest

from orthrus import torch_threads

torch_threads.wait_briefly()  # OpenMP reads it when torch is imported
import torch  # noqa: E402

WORKER = os.environ.get("PYTEST_XDIST_WORKER") or os.environ.get("PYTEST_CURRENT_TEST")
"""The name of this process where several run the suite (`pytest -n 2`), or the test that started it."""
if WORKER:  # one thread each: a team of threads waits for its slowest, which another worker may keep waiting
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
    torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell does in the background: children would ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read where kernels are defined, which may be before their tests are


def pytest_configure(config):
    """Keep derived files of the tests, those of collecting them included, out of the user's cache. Workers share the
    cache, as processes of a user do: the C kernels are compiled once."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    if not WORKER:
        os.environ["ORTHRUS_CACHE"] = tempfile.mkdtemp(prefix="orthrus-tests-")


def pytest_unconfigure(config):
    gc.unfreeze()
    if not WORKER:
        shutil.rmtree(os.environ["ORTHRUS_CACHE"], ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Leave modules and tests, millions of objects, out of collections of garbage: a full one took most of a second."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run the whole product of every law, not the pairwise sample")


SHARE = 6
"""Of the cases that a law has for a family of `tiny.CORE` with features, one in so many runs without `--full`."""
PARITY = "test_views.py"
"""The law that the AR view equals `transformers`."""


def pytest_collection_modifyitems(config, items):
    """Keep the suite within its time: leave out cases of products that need not run whole."""
    if config.getoption("--full"):
        return
    left_out = {item for item in items if item.get_closest_marker("full")}
    left_out |= _beyond_pairs(items) | _beyond_samples(items)
    left_out |= _repeated_for_families(items) | _repeated_for_others([item for item in items if item not in left_out])
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


def _repeated_for_families(items):
    """Nine families times all cases of every law would double the suite's time.

    Which cases run differs by family, so each law holds every family in some case, and every case in some family.
    """
    left_out, groups = set(), _by_family(items, lambda item: item.function, core=True)
    plain = _without_features() if groups else set()
    for number, ((_, family), cases) in enumerate(groups.items()):
        if family not in plain and len(cases) >= SHARE:
            left_out |= {case for n, case in enumerate(cases) if n % SHARE != number % SHARE}
    return left_out


def _repeated_for_others(items):
    """Each family outside `tiny.CORE` meets every law, which is a file, in one case, and that of parity in all.

    The cases of the families are spread evenly over those of the file, so that its tests share the families.
    """
    laws, left_out = {}, set()
    for (law, _), cases in _by_family(items, lambda item: item.path, core=False).items():
        laws.setdefault(law, []).append(cases)
    for law, families in laws.items():
        if law.name != PARITY:
            kept = {cases[number * len(cases) // len(families)] for number, cases in enumerate(families)}
            left_out |= {case for cases in families for case in cases} - kept
    return left_out


def _by_family(items, key, *, core):
    """The cases of laws by `key` and by their family: one of `tiny.CORE`, or one of the others."""
    groups = {}
    for item in items:
        family = _family_of(item)
        if family is not None and _in_core(family) == core:
            groups.setdefault((key(item), family), []).append(item)
    return groups


def _family_of(item):
    """The family of a case of a law, named by a parameter or by that of a fixture; None for other tests."""
    if not hasattr(item, "callspec") or "laws" not in item.path.parts:
        return None
    named = (item.callspec.params.get(name) for name in ("family", "peer", "published_dir"))
    return next((family for family in named if isinstance(family, str)), None)


def _in_core(family):
    import tiny

    return family in tiny.CORE


def _beyond_pairs(items):
    """Cases of tests marked `pairwise` that the others make superfluous: every two values still meet in some case."""
    groups, left_out = {}, set()
    for item in items:
        if item.get_closest_marker("pairwise"):
            groups.setdefault(item.function, []).append(item)
    for cases in groups.values():
        values = {case: [(name, repr(value)) for name, value in case.callspec.params.items()] for case in cases}
        pairs = {case: set(itertools.combinations(values[case], 2)) for case in cases}
        missing, chosen = set().union(*pairs.values()), set()
        while missing:
            best = max(cases, key=lambda case: len(pairs[case] & missing))
            chosen.add(best)
            missing -= pairs[best]
        left_out |= set(cases) - chosen
    return left_out


def _beyond_samples(items):
    """Cases of tests marked `sampled(n)`, but for one in n. Of a product of parameters, each value keeps some case
    where n and the number of values have no common divisor."""
    groups = {}
    for item in items:
        if marker := item.get_closest_marker("sampled"):
            groups.setdefault((item.function, *marker.args), []).append(item)
    return {item for (_, share), cases in groups.items() for n, item in enumerate(cases) if (n + 1) % share}


def _without_features():
    import tiny

    from orthrus.model import families

    return {name for name in tiny.CORE if not families.decoder_config(tiny.hf_config(name)).features}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _as_many_threads_as_before():
    """Where a test leaves torch more threads, all later ones of its process take five times as long: the threads wait
    for one another, and other processes of the suite have the processors."""
    before = torch.get_num_threads()
    yield
    left = torch.get_num_threads()
    torch.set_num_threads(before)
    assert left == before, f"the test leaves torch {left} threads, and had {before}"


@pytest.fixture(autouse=True, scope="session")
def _probed_and_measured_once():
    """Attention is probed once for each shape of models, and what passes cost is measured once for each kind of model,
    rather than at every `orthrus.load` and by every command that times something."""
    import tiny

    with (
        mock.patch("orthrus.runner.runner.choose_attention", tiny.choose_attention),
        mock.patch("orthrus.decoding.planning.calibration.measure", tiny.measure_costs),
    ):
        yield
