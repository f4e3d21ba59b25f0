"""One part, in a process of its own: `python -m orthrus.bench.gpu PART SETTINGS FILE`.

FILE gets the newest result, after each of its changes. Exit code 3: this machine lacks what the part needs.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

from orthrus.bench.gpu.parts import PARTS
from orthrus.bench.gpu.settings import AbsentError, Settings
from orthrus.file_cache import save_json, write_atomically

ABSENT = 3


def main(name: str, settings: str, file: str) -> int:
    """Measure one part. Returns the exit code."""
    values, path = json.loads(settings), Path(file)
    given = Settings(**values | {"output": Path(values["output"])})
    try:
        for result in PARTS[name].measure(given):
            write_atomically(path.parent, {path.name: partial(save_json, content=result)})
    except AbsentError as error:
        print(error, file=sys.stderr)
        return ABSENT
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
