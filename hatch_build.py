"""Compiles the C kernels when a wheel is built or the package is installed from its sources.

An editable installation compiles for this processor alone, a wheel for all levels of its architecture. $ORTHRUS_WHEEL
asks for the wheel of one platform, complete (see `orthrus.backends.native.platforms`), or for a `pure` one. Otherwise,
without a C compiler the wheel is a pure-Python one. The hook imports neither torch nor any other dependency.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

WHEEL = "ORTHRUS_WHEEL"
INSIDE = "orthrus/backends/native/libraries"


class NativeLibraries(BuildHookInterface):
    """Adds compiled libraries to a wheel, and their platform to its tag."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile what is missing; `version` is `standard` or `editable`."""
        sys.path.insert(0, str(Path(self.root) / "src"))
        from orthrus.backends.native import levels, platforms, prebuilt

        asked, warn = os.environ.get(WHEEL, ""), self.app.display_warning
        if asked == "pure":
            return
        if asked:
            libraries, tag = platforms.build(asked, Path(self.directory) / "libraries")
        else:
            best = levels.runnable(levels.processor_features())[:1]
            wanted = best if version == "editable" else levels.of_architecture()
            libraries = prebuilt.build(warn, prebuilt.LIBRARIES, wanted)
            tag = prebuilt.platform_tag(libraries)
        if libraries:
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{tag}"
        if version != "editable":
            files = [file for library in libraries for file in (library, library.with_suffix(".sha256"))]
            build_data["force_include"].update({str(file): f"{INSIDE}/{file.name}" for file in files})
