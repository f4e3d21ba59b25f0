"""Fuzz file loading: mutate one file of a tiny checkpoint and load it. Only clear errors are allowed.

    python tests/fuzz/files.py --count 10000 --seed 0

Seed and index determine a case. Failures are printed with both, and `--start INDEX --count 1 --keep DIR` writes the
files of a case. A case fails if it raises anything but ValueError or OSError, if the ValueError does not name a file of
the case, if it takes more than 20 seconds of CPU time, or if it adds a gibibyte to the memory of the process.
"""

from __future__ import annotations

import argparse
import copy
import faulthandler
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import gguf
import tiny
import tiny_gguf
import torch
from safetensors.torch import load_file, save_file

from orthrus.checkpoint import export, hub

MAX_SECONDS, MAX_BYTES, FAILURES_EXIT_CODE = 20, 2**30, 3
NESTED, DELETED = "@nested@", "@deleted@"
VALUES = [
    0, -1, 1, 2, 3, 7, 10**9, 2**31, 2**63, 2**64 - 1, -(2**63), 0.5, 1e308, -1e308, 1e-320, float("nan"), float("inf"),
    "", "x" * 1000, "../x", "\0", "\ud800", None, True, False, [], {}, [0], [None], {"a": {}}, [[[[]]]], NESTED, NESTED,
    DELETED, DELETED,
]  # fmt: skip
INTEGERS = [0, 1, 2, 3, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1]
SMALL = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32}


class Twice(dict):
    """A dict that is serialised with every entry twice."""

    def items(self):
        return [*super().items(), *super().items()]


def paths_of(value, path=()):
    """The paths of all nodes of a JSON value."""
    yield path
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths_of(item, (*path, key))


def mutate_json(rng, value):
    """Replace, delete, duplicate or rename some nodes. Returns the JSON text."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(paths_of(value))
        if rng.random() < 0.7:  # nodes near the top matter most, and are few
            places = [place for place in places if len(place) <= 2]
        place = rng.choice(places)
        if not place:
            twice = isinstance(value, dict) and rng.random() < 0.9
            value = Twice(value) if twice else copy.deepcopy(rng.choice(VALUES))
            continue
        holder, last = value, place[-1]
        for key in place[:-1]:
            holder = holder[key]
        new = copy.deepcopy(rng.choice(VALUES)) if rng.random() < 0.8 else near(rng, holder[last])
        if new == DELETED:
            del holder[last]
        elif isinstance(holder, dict) and rng.random() < 0.1:
            holder[f"{last}{rng.choice(('', 'x', '.weight', '_diff'))}"] = holder.pop(last)
        elif isinstance(holder[last], dict) and rng.random() < 0.1:
            holder[last] = Twice(holder[last])
        else:
            holder[last] = new
    return json.dumps(value).replace(f'"{NESTED}"', "[" * 100_000 + "]" * 100_000).encode()


def near(rng, value):
    """A value similar to the present one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return rng.choice((value + 1, value - 1, value * 2, -value, value / 2, value * 10**6, str(value)))
    if isinstance(value, str):
        return rng.choice((value.upper(), value + "x", value[1:], value[::-1], value * 50))
    return [value]


def position(rng, data, head):
    """A random offset into the data, more often into its head."""
    return rng.randrange(max(1, min(head, len(data)) if rng.random() < 0.7 else len(data)))


def mutate_bytes(rng, data, head):
    """Flip, cut, insert, remove, repeat or overwrite bytes."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, length = position(rng, data, head), rng.choice((1, 2, 4, 8, 40, 500))
        kind = rng.choice(("flip", "flip", "cut", "insert", "remove", "repeat", "number", "number", "zero"))
        if kind == "flip" and data:
            for _ in range(rng.choice((1, 1, 2, 8))):
                data[position(rng, data, head)] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del data[at:]
        elif kind == "insert":
            data[at:at] = rng.randbytes(length)
        elif kind == "remove":
            del data[at : at + length]
        elif kind == "repeat":
            data[at:at] = data[at : at + length]
        elif kind == "number":
            form = rng.choice(("<Q", "<I"))
            data[at : at + struct.calcsize(form)] = struct.pack(
                form, rng.choice(INTEGERS) % 2 ** (8 * struct.calcsize(form))
            )
        else:
            data[at : at + length] = bytes(length)
    return bytes(data)


def mutate_safetensors(rng, data):
    """Mutate the JSON header, with a right or wrong length, or mutate bytes."""
    size = struct.unpack("<Q", data[:8])[0]
    if rng.random() < 0.5:
        return mutate_bytes(rng, data, 8 + size)
    header = mutate_json(rng, json.loads(data[8 : 8 + size]))
    header = header if rng.random() < 0.2 else header.ljust(-(-len(header) // 8) * 8)
    length = rng.choice(INTEGERS) if rng.random() < 0.1 else len(header)
    return struct.pack("<Q", length) + header + data[8 + size :]


def mutate_gguf(rng, path, data, head):
    """Write a GGUF file with metadata values of another type, or mutate bytes."""
    if rng.random() < 0.7:
        path.write_bytes(mutate_bytes(rng, data, head))
        return
    values = (0, -1, 1, 3, 4, 17, 32, 10**9, 2**31, float("nan"), 0.5, 4.0, 1e30, "", "x" * 1000, [4, 4], [], None)
    keys = [*tiny_gguf.FIELDS, "rope.freq_base", "attention.layer_norm_rms_epsilon"]
    changes = {rng.choice(keys).replace(".", "__"): rng.choice(values[:-1]) for _ in range(rng.choice((1, 1, 2)))}
    changes = {name: 5 if value == [] else value for name, value in changes.items()}
    weights = tiny_gguf.tensors()
    if rng.random() < 0.3:
        name = rng.choice(sorted(weights))
        new = rng.choice((name[:-1], "x", "blk.9.attn_q.weight", "output.weight", name.replace(".", "_")))
        weights[new] = weights.pop(name)
        changes = {}
    tiny_gguf.save(path, weights, **changes)


@dataclass
class Homes:
    """The checkpoints that cases start from."""

    root: Path
    gguf_head: int = 0
    gguf_data: bytes = b""

    def make(self):
        tiny.save_checkpoint(self.root / "published", **SMALL)
        whole = self.root / "published"
        (whole / "generation_config.json").write_text(json.dumps({"eos_token_id": [319, 5], "temperature": 0.7}))
        shutil.copytree(whole, self.root / "sharded")
        tensors = load_file(whole / "model.safetensors")
        names = sorted(tensors)
        parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
        for file, part in parts.items():
            save_file({n: tensors[n] for n in part}, self.root / "sharded" / file)
        weight_map = {n: file for file, part in parts.items() for n in part}
        (self.root / "sharded" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        (self.root / "sharded" / "model.safetensors").unlink()
        loaded = hub.load(str(whole), dtype=torch.float32)
        loaded = replace(
            loaded, backbone=replace(loaded.backbone, id="home")
        )  # not a path: cases must not depend on one
        for name, int8 in (("plain", False), ("int8", True)):
            export.export_adapter(loaded, self.root / name, {"made by": "a test"}, int8=int8)
        types = {
            "token_embd.weight": gguf.GGMLQuantizationType.Q8_0,
            "blk.0.ffn_up.weight": gguf.GGMLQuantizationType.Q4_1,
        }
        file = tiny_gguf.save(self.root / "model.gguf", types=types)
        self.gguf_data = file.read_bytes()
        self.gguf_head = min(int(t.data_offset) for t in gguf.GGUFReader(file).tensors)
        return self


def write_case(rng, homes, where):
    """Write the files of one case. Returns what was mutated, the checkpoint and its adapter."""
    kind = rng.choice(("published", "published", "sharded", "plain", "int8", "gguf", "gguf"))
    where.mkdir()
    if kind == "gguf":
        mutate_gguf(rng, where / "model.gguf", homes.gguf_data, homes.gguf_head)
        return "gguf", where / "model.gguf", None
    for file in (homes.root / kind).iterdir():
        (where / file.name).symlink_to(file)
    files = sorted(f.name for f in where.iterdir() if f.suffix in (".json", ".safetensors"))
    target = where / rng.choice([*files, *(f for f in files if "config" in f or f.endswith("index.json"))])
    data = target.read_bytes()
    if kind == "sharded" and rng.random() < 0.1:
        names = ["a.safetensors", "b.safetensors"]
        contents = [(where / name).read_bytes() for name in names]
        for name, content in zip(names, rng.choice((contents[::-1], contents[:1] * 2)), strict=True):
            (where / name).unlink()
            (where / name).write_bytes(content)
    elif rng.random() < 0.03:
        target.unlink()
        rng.choice((lambda: None, target.mkdir, lambda: target.symlink_to(target), target.touch))()
    else:
        target.unlink()
        if target.suffix == ".safetensors":
            target.write_bytes(mutate_safetensors(rng, data))
        else:
            mutated = mutate_json(rng, json.loads(data)) if rng.random() < 0.7 else mutate_bytes(rng, data, len(data))
            target.write_bytes(mutated)
    name = f"{kind}: {target.suffix.removeprefix('.')}" if target.suffix == ".safetensors" else f"{kind}: {target.name}"
    return name, *((homes.root / "published", where) if kind in ("plain", "int8") else (where, None))


def outcome_of(checkpoint, adapter, dtype, where):
    """The outcome of load and describe: `loaded`, `ValueError`, `OSError`, or a description of a failure."""
    outcomes = []
    for read in (
        lambda: hub.load(str(checkpoint), adapter=adapter, dtype=dtype, allow_other_backbone=True),
        lambda: hub.describe(str(checkpoint), adapter=adapter),
    ):
        try:
            decoder = read().decoder
            outcomes.append("loaded")
            if decoder.device.type != "meta" and not all(p.isfinite().all() for p in decoder.parameters()):
                return "loaded weights that are NaN or infinite"
        except ValueError as error:
            outcomes.append("ValueError")
            if str(where) not in str(error) and "adapter" not in str(error):
                return f"does not name the file: {error}"
            if len(str(error)) > 1000:
                return f"an error of {len(str(error))} characters: {str(error)[:300]}"
        except OSError:
            outcomes.append("OSError")
        except BaseException:  # a panic in a library is not an Exception
            return traceback.format_exc()
    return outcomes[0]


@dataclass
class Report:
    """Counts of cases by kind and outcome, and the failures with the options that reproduce them."""

    counts: dict[str, Counter] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    added_bytes: int = 0

    def __str__(self):
        lines = [f"{'':34}{'loaded':>8}{'ValueError':>12}{'OSError':>9}{'failed':>8}"]
        total = Counter()
        for kind, counts in sorted(self.counts.items()):
            total.update(counts)
            lines.append(self._line(kind, counts))
        return "\n".join([*lines, self._line("all", total)])

    @staticmethod
    def _line(kind, c):
        return f"{kind:34}{c['loaded']:8}{c['ValueError']:12}{c['OSError']:9}{c['failed']:8}"


def run(root, seed, start, count, keep=None, progress=None):
    """Run cases `start` to `start + count` in a directory, which also holds the file cache."""
    os.environ |= {"ORTHRUS_CACHE": str(root / "cache"), "HF_HUB_OFFLINE": "1"}
    homes, report = Homes(root / "homes").make(), Report()
    first_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for index in range(start, start + count):
        rng, where = random.Random(f"{seed}:{index}"), root / f"case-{index}"
        if progress is not None:
            os.pwrite(progress, f"{index:12}\n".encode(), 0)
        kind, checkpoint, adapter = write_case(rng, homes, where)
        began = time.process_time()
        faulthandler.dump_traceback_later(10 * MAX_SECONDS, exit=True)  # a hang, even on a busy machine
        outcome = outcome_of(checkpoint, adapter, rng.choice((torch.float32, torch.bfloat16)), where)
        faulthandler.cancel_dump_traceback_later()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - first_memory
        if time.process_time() - began > MAX_SECONDS:
            outcome = f"took {time.process_time() - began:.0f} seconds"
        elif memory > MAX_BYTES:
            outcome, first_memory = f"added {memory >> 20} MiB", first_memory + memory
        report.added_bytes = max(report.added_bytes, memory)
        failed = outcome not in ("loaded", "ValueError", "OSError")
        report.counts.setdefault(kind, Counter())["failed" if failed else outcome] += 1
        if failed:
            report.failures.append(f"--seed {seed} --start {index} --count 1 ({kind}): {outcome}")
        if keep is not None:
            shutil.copytree(where, keep / where.name)
        shutil.rmtree(where)
        shutil.rmtree(root / "cache", ignore_errors=True)
    return report


def main():
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--keep", type=Path, help="copy the files of every case to this directory")
    options = parser.parse_args()
    memory = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder,
        tempfile.TemporaryFile() as file,
    ):
        worker = os.fork()  # the parent reports which case ended the process
        if not worker:
            os._exit(work(Path(folder), options, file.fileno()))
        signal.signal(signal.SIGTERM, lambda *_: os.kill(worker, signal.SIGTERM))
        code = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
        if code not in (0, FAILURES_EXIT_CODE):
            print(f"--seed {options.seed} --start {int(os.pread(file.fileno(), 13, 0))} --count 1: ended with {code}")
    sys.exit(code)


def work(root, options, progress):
    """Run the cases with a memory limit and print the report. Returns the exit code."""
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 4 * MAX_BYTES, size + 4 * MAX_BYTES))
    began = time.monotonic()
    report = run(root, options.seed, options.start, options.count, options.keep, progress)
    for failure in report.failures:
        print(failure)
    print(report)
    seconds, memory = time.monotonic() - began, report.added_bytes >> 20
    print(f"{options.count} cases in {seconds:.0f} s, {len(report.failures)} failures, {memory} MiB added", flush=True)
    return FAILURES_EXIT_CODE if report.failures else 0


if __name__ == "__main__":
    main()
