"""A process runs the best library that its processor can run and that was compiled from the sources it has; what is
damaged, missing or of other sources is never loaded."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import tiny
import torch

from orthrus.backends import select
from orthrus.backends.native import build, compiler, levels, platforms, prebuilt, structs
from orthrus.backends.native import kernels as native

ROOT = Path(__file__).parents[2]
BEST, SECOND, LAPTOP = "x86-64-amx", "x86-64-v4-bf16", "x86-64-v3"
FEATURES = {level.name: frozenset(level.features.split()) for level in levels.LEVELS}
FAKE = """#!/bin/sh
while [ "$1" != -o ]; do shift; done
printf 'made by a fake\\0libc.so.6\\0GLIBC_2.17\\0' > "$2"
"""


@pytest.fixture(autouse=True)
def _on_this_architecture(monkeypatch):
    monkeypatch.setattr(levels.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(levels.platform, "system", lambda: "Linux")
    for name in ("CC", levels.MARCH):
        monkeypatch.delenv(name, raising=False)
    build._chosen.cache_clear()
    yield
    build._chosen.cache_clear()


@pytest.fixture(name="fake")
def _fake(tmp_path, monkeypatch):
    """A compiler that takes no time."""
    path = tmp_path / "fake-cc"
    path.write_text(FAKE)
    path.chmod(0o755)
    monkeypatch.setenv("CC", str(path))
    return path


@pytest.fixture(name="usual_compiler")
def _usual_compiler(fake, tmp_path, monkeypatch):
    """The same as `cc`, which is found where $CC is not set."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    (tmp_path / "bin").mkdir()
    return Path(shutil.copy(fake, tmp_path / "bin" / "cc"))


@pytest.fixture(name="libraries")
def _libraries(fake, tmp_path, monkeypatch):
    """A directory with a fake library for every level and dtype."""
    directory = tmp_path / "libraries"
    monkeypatch.setattr(prebuilt, "LIBRARIES", directory)
    assert len(prebuilt.build(pytest.fail, directory, levels.of_architecture())) == len(levels.of_architecture()) * len(
        compiler.DEFINES
    )
    monkeypatch.delenv("CC")
    return directory


def name_of(library):
    return library and library.name.rsplit("-", 2)[0]


@pytest.mark.parametrize(
    ("features", "found"),
    [
        (FEATURES[BEST] | {"sse", "more"}, BEST),
        (FEATURES[SECOND], SECOND),
        (FEATURES[BEST] - {"amx_int8"}, SECOND),
        (FEATURES[BEST] - {"avx512_bf16"}, "x86-64-v4-vnni"),
        (FEATURES[BEST] - {"avx512_vnni"}, "x86-64-v4"),
        (FEATURES[BEST] - {"avx512f"}, LAPTOP),
        (FEATURES[LAPTOP] | {"avx_vnni"}, "x86-64-v3-vnni"),
        (FEATURES[BEST] - {"bmi2"}, None),
        (frozenset(), None),
    ],
)
@pytest.mark.parametrize("dtype", list(compiler.DEFINES))
def test_the_best_level_that_the_processor_runs_is_found(libraries, dtype, features, found):
    library = prebuilt.find(dtype, levels.runnable(features), libraries)
    assert name_of(library) == found
    assert found is None or dtype in library.name


def test_a_better_level_needs_all_features_of_the_worse():
    """Else the order of the table would not be that of the processors."""
    assert FEATURES[LAPTOP] < FEATURES[SECOND] < FEATURES[BEST]


def test_no_level_is_run_on_another_architecture_or_system(libraries, monkeypatch):
    every = frozenset().union(*FEATURES.values())
    monkeypatch.setattr(levels.platform, "machine", lambda: "riscv64")
    assert prebuilt.find("bfloat16", levels.runnable(every), libraries) is None
    monkeypatch.setattr(levels.platform, "machine", lambda: "AMD64")
    monkeypatch.setattr(levels.platform, "system", lambda: "Windows")
    assert prebuilt.find("bfloat16", levels.runnable(every), libraries) is None


def test_features_are_read_from_cpuinfo(tmp_path, monkeypatch):
    monkeypatch.setattr(levels, "CPUINFO", tmp_path / "cpuinfo")
    assert levels.processor_features() == frozenset()
    levels.CPUINFO.write_text("processor\t: 0\nflags\t\t: fpu avx2 amx_tile\n\nprocessor\t: 1\n")
    assert levels.processor_features() == {"fpu", "avx2", "amx_tile"}
    levels.CPUINFO.write_text("Features\t: fp asimd\n")
    assert levels.processor_features() == {"fp", "asimd"}


def test_features_of_apple_are_those_that_sysctl_lists(tmp_path, monkeypatch):
    monkeypatch.setattr(levels.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(levels, "SYSCTL", str(tmp_path / "sysctl"))
    assert levels.processor_features() == frozenset()
    lines = "hw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_BF16: 0\nhw.optional.AdvSIMD: 1\nhw.optional.x: 1"
    (tmp_path / "sysctl").write_text(f"#!/bin/sh\necho '{lines}'\n")
    (tmp_path / "sysctl").chmod(0o755)
    assert levels.processor_features() == {"asimd", "asimddp"}


def test_a_mac_runs_the_levels_of_aarch64(monkeypatch):
    own = levels.Level("own", "aarch64", "-march=armv8-a", "asimd")
    monkeypatch.setattr(levels, "LEVELS", (*levels.LEVELS, own))
    monkeypatch.setattr(levels.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(levels.platform, "machine", lambda: "arm64")
    assert own in levels.runnable(frozenset({"asimd"})) and own not in levels.runnable(frozenset())


@pytest.mark.parametrize(
    ("flags", "processor"),
    [
        ("-march=x86-64-v4 -mavx512bf16 -mamx-tile", "x86_64_v4+avx512bf16+amx_tile"),
        ("-march=armv8-a", "generic+v8a"),
        ("-march=armv8.2-a+dotprod", "generic+v8_2a+dotprod"),
    ],
)
def test_the_flags_of_a_level_in_the_words_of_zig(flags, processor):
    assert platforms.zig_processor(levels.Level("", "", flags, "")) == f"-mcpu={processor}"


@pytest.mark.parametrize("damage", ["truncated", "no checksum", "checksum of another"])
def test_a_damaged_library_is_passed_over_with_a_warning(libraries, caplog, damage):
    best = prebuilt.find("bfloat16", levels.runnable(FEATURES[BEST]), libraries)
    if damage == "truncated":
        best.write_bytes(best.read_bytes()[:5])
    elif damage == "no checksum":
        best.with_suffix(".sha256").unlink()
    else:
        best.with_suffix(".sha256").write_text("0" * 64)
    assert name_of(prebuilt.find("bfloat16", levels.runnable(FEATURES[BEST]), libraries)) == SECOND
    assert [record.message for record in caplog.records] == [
        f"{best} is damaged: its checksum differs; install the package again"
    ]


def test_a_library_of_other_sources_is_not_found_and_goes_at_the_next_build(libraries, fake, tmp_path, monkeypatch):
    old = prebuilt.find("float32", levels.runnable(FEATURES[BEST]), libraries)
    changed = shutil.copytree(compiler.SOURCES, tmp_path / "c")
    (changed / "amx.h").write_text("/* changed */")
    monkeypatch.setattr(compiler, "SOURCES", changed)
    assert prebuilt.find("float32", levels.runnable(FEATURES[BEST]), libraries) is None
    monkeypatch.setenv("CC", str(fake))
    built = prebuilt.build(pytest.fail, libraries, levels.of_architecture())
    assert old not in built and not old.exists() and not old.with_suffix(".sha256").exists()
    assert {path for path in libraries.iterdir() if path.suffix == ".so"} == set(built)


def test_what_is_built_is_not_compiled_again(libraries, tmp_path, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in libraries.iterdir()}
    monkeypatch.setenv("CC", "no-such-compiler")
    assert len(prebuilt.build(pytest.fail, libraries, levels.of_architecture())) == len(before) / 2
    assert {path: path.stat().st_mtime_ns for path in libraries.iterdir()} == before


def test_without_a_compiler_nothing_is_built_and_one_line_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    said = []
    assert prebuilt.build(said.append, tmp_path / "libraries", levels.of_architecture()) == []
    (line,) = said
    assert "'no-such-compiler', which is not there" in line and "\n" not in line


def test_a_level_that_the_compiler_does_not_know_is_left_out(tmp_path, monkeypatch):
    old = tmp_path / "old-cc"
    old.write_text(
        FAKE.replace("while", 'case "$*" in *amx*) echo "error: unknown option" >&2; exit 1;; esac\nwhile', 1)
    )
    old.chmod(0o755)
    monkeypatch.setenv("CC", str(old))
    said = []
    built = prebuilt.build(said.append, tmp_path / "libraries", levels.of_architecture())
    assert {name_of(library) for library in built} == {level.name for level in levels.of_architecture()} - {BEST}
    assert len(said) == 1 and "unknown option" in said[0]


@pytest.mark.parametrize(
    ("content", "tag"),
    [
        (b"\0libc.so.6\0libm.so.6\0GLIBC_2.2.5\0GLIBC_2.27\0GLIBC_2.14\0", "manylinux_2_27_x86_64"),
        (b"\0libc.so.6\0libgomp.so.1\0GLIBC_2.27\0GOMP_4.0\0", "linux_x86_64"),
        (b"\0libc.musl-x86_64.so.1\0", "linux_x86_64"),
    ],
)
def test_the_platform_of_a_wheel_is_what_its_libraries_need(tmp_path, content, tag):
    (tmp_path / "a.so").write_bytes(content)
    assert prebuilt.platform_tag([tmp_path / "a.so"]) == tag


def test_what_was_compiled_for_this_machine_comes_first_and_a_process_keeps_its_choice(
    libraries, usual_compiler, tmp_path, monkeypatch
):
    monkeypatch.setattr(levels, "processor_features", lambda: FEATURES[BEST])
    cache = tmp_path / "cache"
    first = build._chosen("float32", cache, build._asked())
    assert first.parent == libraries and build.origin(first) == f"built ahead, {BEST}"
    compiled = build._compiled("float32", cache)  # as another process does
    assert compiled.parent == cache and "compiled on this machine" in build.origin(compiled)
    assert build.ready("float32", cache) == compiled
    assert build._chosen("float32", cache, build._asked()) == first
    assert build.compile_here("float32", cache) == compiled
    assert build._chosen("float32", cache, build._asked()) == compiled


@pytest.mark.parametrize("name", ["CC", levels.MARCH])
def test_a_compiler_or_a_processor_that_is_asked_for_is_compiled_for(
    libraries, usual_compiler, tmp_path, monkeypatch, name
):
    monkeypatch.setattr(levels, "processor_features", lambda: FEATURES[BEST])
    monkeypatch.setenv(name, str(usual_compiler) if name == "CC" else levels.NATIVE)
    assert build.ready("bfloat16", tmp_path / "cache") is None
    assert build._chosen("bfloat16", tmp_path / "cache", build._asked()).parent == tmp_path / "cache"


def test_the_library_of_the_level_that_is_asked_for_is_the_only_one(libraries, usual_compiler, tmp_path, monkeypatch):
    monkeypatch.setattr(levels, "processor_features", lambda: FEATURES[BEST])
    monkeypatch.setenv(levels.MARCH, "x86-64-v4")
    library = build.ready("bfloat16", tmp_path / "cache")
    assert name_of(library) == "x86-64-v4"
    library.unlink()
    assert build.ready("bfloat16", tmp_path / "cache") is None
    compiled = build._chosen("bfloat16", tmp_path / "cache", build._asked())
    assert compiled.parent == tmp_path / "cache" and "-march=x86-64-v4" in build.origin(compiled)


@pytest.mark.parametrize("name", ["foo", "x86-64-v4-bf16", "armv8-a"])
def test_a_level_that_this_processor_does_not_run_is_refused_by_name(libraries, tmp_path, monkeypatch, name):
    monkeypatch.setattr(levels, "processor_features", lambda: FEATURES["x86-64-v4"])
    monkeypatch.setenv(levels.MARCH, name)
    message = f"ORTHRUS_MARCH='{name}' .* use native, x86-64-v4, x86-64-v3$"
    with pytest.raises(ValueError, match=message):
        select.fastest(torch.float32, torch.device("cpu"), tmp_path)


def test_one_that_cannot_be_loaded_is_compiled_for(libraries, tmp_path, monkeypatch, caplog):
    """The libraries here are no libraries, like those that need a system with more."""
    monkeypatch.setattr(levels, "processor_features", lambda: FEATURES[BEST])
    monkeypatch.setenv("PATH", "")
    kernels = select.fastest(torch.float32, torch.device("cpu"), tmp_path / "cache")
    assert kernels.name == "torch" and "no C compiler" in kernels.notice
    assert "cannot be loaded, so the kernels are compiled" in caplog.text


def test_without_a_compiler_and_a_cache_the_built_library_runs(tmp_path, monkeypatch):
    """The library of this checkout, if it was installed: it loads and has the structs of this version."""
    if prebuilt.find("float32", levels.runnable(levels.processor_features()), prebuilt.LIBRARIES) is None:
        pytest.skip("no library was built ahead for this processor")
    monkeypatch.setenv("PATH", "")
    blocked = tmp_path / "file"
    blocked.write_text("")
    for dtype in tiny.DTYPES.values():
        kernels = native.load(dtype, blocked / "cache")
        assert kernels.path.parent == prebuilt.LIBRARIES
        assert structs.mismatch(kernels.library) is None


@pytest.fixture(name="tree", scope="module")
def _tree(tmp_path_factory):
    """A copy of what a wheel is built from, without the large files."""
    tree = tmp_path_factory.mktemp("wheel") / "tree"
    large = shutil.ignore_patterns("libraries", "bundled", "data", "__pycache__")
    shutil.copytree(ROOT / "src" / "orthrus", tree / "src" / "orthrus", ignore=large)
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, tree)
    shutil.copy(ROOT / ".gitignore", tree)
    return tree


def wheel_of(tree, out, **environment):
    """Build a wheel where torch cannot be imported: the files in it, and its name."""
    pytest.importorskip("hatchling")
    code = "import sys; sys.modules['torch'] = None; from hatchling.cli import hatchling; sys.exit(hatchling())"
    process = subprocess.run(
        [sys.executable, "-c", code, "build", "-t", "wheel", "-d", str(out)], cwd=tree, capture_output=True, text=True,
        check=False, env={**os.environ, **environment},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    (wheel,) = out.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist(), wheel.name, process.stdout + process.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="nothing is built ahead on this system")
def test_a_wheel_holds_the_libraries_and_the_tag_of_its_platform(tree, fake, tmp_path):
    if not [level for level in levels.LEVELS if level.machine == os.uname().machine]:
        pytest.skip("no level for this architecture")
    files, name, _ = wheel_of(tree, tmp_path / "dist", CC=str(fake))
    held = [Path(file).name for file in files if "/libraries/" in file]
    assert {name.rsplit("-", 2)[0] for name in held if name.endswith(".so")} == {
        level.name for level in levels.LEVELS if level.machine == os.uname().machine
    }
    assert sorted(Path(file).stem for file in held if file.endswith(".sha256")) == sorted(
        Path(file).stem for file in held if file.endswith(".so")
    )
    assert name.endswith(f"-py3-none-manylinux_2_17_{os.uname().machine}.whl")
    shutil.rmtree(tree / "src" / "orthrus" / "backends" / "native" / "libraries")


FAKE_ZIG = """
import pathlib, sys
made = pathlib.Path(sys.argv[sys.argv.index("-o") + 1])
made.write_bytes(" ".join(sys.argv).encode())
"""


@pytest.mark.parametrize("name", list(platforms.PLATFORMS))
def test_a_wheel_for_another_platform_has_its_tag_and_the_libraries_that_its_processors_look_for(tree, tmp_path, name):
    (tmp_path / "zig" / "ziglang").mkdir(parents=True)
    (tmp_path / "zig" / "ziglang" / "__init__.py").touch()
    (tmp_path / "zig" / "ziglang" / "__main__.py").write_text(FAKE_ZIG)
    here = tree / "src" / "orthrus" / "backends" / "native" / "libraries"
    here.mkdir(exist_ok=True)
    (here / "of-this-machine.so").touch()
    paths = os.pathsep.join([str(tmp_path / "zig"), *filter(None, [os.environ.get("PYTHONPATH")])])
    files, wheel, _ = wheel_of(tree, tmp_path / "dist", ORTHRUS_WHEEL=name, PYTHONPATH=paths)
    shutil.rmtree(here)
    platform = platforms.PLATFORMS[name]
    own = [level for level in levels.LEVELS if level.machine == platform.machine]
    expected = {prebuilt._library(level, dtype, Path()).stem for level in own for dtype in compiler.DEFINES}
    held = [Path(file) for file in files if "/libraries/" in file]
    assert {file.stem for file in held if file.suffix == ".so"} == {
        file.stem for file in held if file.suffix == ".sha256"
    }
    assert {file.stem for file in held} == expected
    assert wheel.endswith(f"-py3-none-{platform.tag}.whl")
    for level in own:
        library = tmp_path / "dist" / "libraries" / name / prebuilt._library(level, "float32", Path()).name
        command = library.read_text()
        assert f"-target {platform.target}" in command and platforms.zig_processor(level) in command


def test_a_wheel_that_lacks_a_library_is_not_made(monkeypatch, tmp_path):
    monkeypatch.setattr(platforms, "command", lambda platform, level: ["false"])
    with pytest.raises(compiler.UnavailableError, match="failed"):
        platforms.build("linux-x86_64", tmp_path)
    monkeypatch.setattr(levels, "LEVELS", ())
    with pytest.raises(compiler.UnavailableError, match="no levels of aarch64"):
        platforms.build("linux-aarch64", tmp_path)
    with pytest.raises(ValueError, match="linux-x86_64"):
        platforms.build("windows", tmp_path)


def test_a_wheel_that_is_to_be_pure_python_is(tree, fake, tmp_path):
    files, name, _ = wheel_of(tree, tmp_path / "dist", ORTHRUS_WHEEL="pure", CC=str(fake))
    assert name.endswith("-py3-none-any.whl") and not [file for file in files if "/libraries/" in file]


def test_a_wheel_without_a_compiler_is_pure_python(tree, tmp_path):
    files, name, output = wheel_of(tree, tmp_path / "dist", CC="no-such-compiler")
    assert name.endswith("-py3-none-any.whl")
    assert not [file for file in files if "/libraries/" in file]
    assert "orthrus/backends/native/c/native.c" in files
    if sys.platform == "linux":
        assert output.count("no-such-compiler") <= 1


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("wheels", "installed"), [("pure", ["hatchling"]), ("pure linux-x86_64", ["hatchling", "ziglang"])]
)
def test_building_wheels_installs_the_build_tool_alone(wheels, installed):
    command = ["make", "--dry-run", "--always-make", "wheels", f"WHEELS={wheels}"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"pip install --quiet '(\w+)", shown) == installed
    assert "editable" not in shown
