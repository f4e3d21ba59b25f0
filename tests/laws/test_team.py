"""A parallel region ends and has one result, however many threads come to it, whoever calls, and after a fork."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import tiny
import torch

from orthrus.backends.native import kernels as native
from orthrus.backends.native import structs
from orthrus.file_cache import cache_directory

HOUR = 3600 * 10**9
ROWS, SIZE, NODES = 37, 512, 64


@pytest.fixture(name="library")
def _library():
    kernels = native.load(torch.float32, cache_directory())
    if kernels is None:
        pytest.skip("no C compiler here")
    kernels.library.team_threads.restype = ctypes.c_int64
    return kernels.library


@pytest.fixture(name="patience")
def _patience(library):
    """How many nanoseconds a region waits for its threads."""
    patience = ctypes.c_int64.in_dll(library, "team_patience")
    before = patience.value
    yield patience
    patience.value = before


def come(library, wanted):
    """How many threads come to a region; not those that stay away after one to which they came too late."""
    for _ in range(10000):
        count = library.team_threads(ctypes.c_int64(wanted))
        if count == wanted:
            break
    return count


def tree(library, logits, threads):
    """Tokens, parents and confidence of the tree of drafts from these rows, which the threads divide among them."""
    temperatures = (ctypes.c_float * ROWS)(*[1.0] * ROWS)
    rows = logits.data_ptr(), None, ctypes.addressof(temperatures), *logits.shape
    block = structs.DraftBlock(*rows, True, -1, NODES, False)
    tokens, parents, looked_up = ((ctypes.c_int64 * NODES)() for _ in range(3))
    confidence = (ctypes.c_float * NODES)()
    nodes = structs.DraftNodes(*map(ctypes.addressof, (tokens, parents, confidence, looked_up)))
    found = library.draft_tree(ctypes.byref(block), None, ctypes.byref(nodes), ctypes.c_int64(threads))
    return found, [*tokens], [*parents], [*confidence]


@pytest.mark.parametrize("wanted", [1, 2, 3, 7, 2, 1])
def test_all_threads_come_to_a_region_that_waits_for_them(library, patience, wanted):
    patience.value = HOUR
    assert come(library, wanted) == wanted


def test_a_region_does_not_wait_for_late_threads(library, patience):
    patience.value = 0
    assert min(library.team_threads(ctypes.c_int64(64)) for _ in range(100)) < 64


@pytest.mark.parametrize("nanoseconds", [0, 1000, 100000, HOUR])
def test_results_do_not_depend_on_who_comes(library, patience, nanoseconds):
    patience.value = nanoseconds
    logits = torch.randn(ROWS, SIZE)
    alone = tree(library, logits, 1)
    assert alone[0] == NODES
    for threads in (2, 5, 3, 64, 2) * 20:
        assert tree(library, logits, threads) == alone


def test_many_callers_at_once(library, patience):
    patience.value = 10**6
    logits = [torch.randn(ROWS, SIZE) for _ in range(6)]
    alone, together = [tree(library, each, 1) for each in logits], Barrier(6)

    def run(n):
        together.wait()
        return all(tree(library, logits[n], 2 + n % 3) == alone[n] for _ in range(100))

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(run, range(6)))


def test_a_pass_has_the_same_bits_whoever_comes(library, patience):
    before, request = torch.get_num_threads(), tiny.request(530, 6)
    runner = tiny.runner.__wrapped__("qwen3", "fp32", 8, kernels="native")
    alone = tiny.oracle(runner, request, logits=True).logits_NV
    try:
        torch.set_num_threads(5)
        for nanoseconds in (0, 1000, HOUR):
            patience.value = nanoseconds
            assert torch.equal(tiny.oracle(runner, request, logits=True).logits_NV, alone)
    finally:
        torch.set_num_threads(before)


START = """
import ctypes, os, resource, sys
library = ctypes.CDLL(sys.argv[1])
library.team_threads.restype = ctypes.c_int64
patience = ctypes.c_int64.in_dll(library, "team_patience")
patience.value = 3600 * 10**9
def come(wanted):
    return library.team_threads(ctypes.c_int64(wanted))
"""
FORKS = """
assert come(3) == 3
for _ in range(20):
    child = os.fork()
    if not child:
        os._exit(come(3) != 3 or come(2) != 2)
    assert come(3) == 3
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
FORK_WHILE_ANOTHER_CALLS = """
import threading
def call():
    while not done:
        come(2)
done, others = [], [threading.Thread(target=call) for _ in range(3)]
[other.start() for other in others]
for _ in range(50):
    child = os.fork()
    if not child:
        os._exit(come(2) != 2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
done.append(1)
"""
NO_MORE_THREADS = """
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 3 * 9 * 2**20, resource.RLIM_INFINITY))
assert 1 < come(50) < 6
assert 1 < come(50) < 6
"""
EXIT_IN_A_REGION = """
import threading
def call():
    while True:
        come(2)
threading.Thread(target=call, daemon=True).start()
while come(3) != 3: pass
"""


@pytest.mark.skipif(sys.platform != "linux", reason="uses fork and /proc")
@pytest.mark.parametrize("code", [FORKS, FORK_WHILE_ANOTHER_CALLS, NO_MORE_THREADS, EXIT_IN_A_REGION])
def test_a_process_with_teams_can_fork_run_out_of_threads_and_end(library, code):
    command = [sys.executable, "-c", START + code, library._name]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=os.environ)
    assert process.returncode == 0, process.stderr
