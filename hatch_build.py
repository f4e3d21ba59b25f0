"""Compiles the C kernels when a wheel is built or the package is installed from its sources.

Without a C compiler the wheel is a pure-Python one. The hook imports neither torch nor any other dependency.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeLibraries(BuildHookInterface):
    """Adds the libraries of `orthrus.backends.native.prebuilt` to a wheel, and its platform to the tag."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile what is missing; `version` is `standard` or `editable`."""
        sys.path.insert(0, str(Path(self.root) / "src"))
        from orthrus.backends.native import prebuilt

        libraries = prebuilt.build(self.app.display_warning, prebuilt.LIBRARIES)
        if libraries:
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{prebuilt.platform_tag(libraries)}"
