"""A process of `clnn verify`: runs one family or measures one thing, and tells its parent what happens, a line of JSON each."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from typing import Any

BEGAN = time.time()  # before the imports that take time


def main(name: str) -> None:
    """Run what `name` is; errors are told as text."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what drivers print is no answer

    def say(**what: Any) -> None:
        print(json.dumps({**what, "at": round(time.time() - BEGAN, 1)}), file=out, flush=True)

    try:
        from ...errors import ClnnError
        from ...runtime.devices.choice import device
        from ...runtime.memory import Memory
        from .checks import Checks
        from .families import FAMILIES
        from .speed import TASKS

        if name in TASKS:
            say(done=TASKS[name](say, BEGAN))
            return
        Memory.poisoned = True
        checks = Checks(device(), say)
        FAMILIES[name].run(checks)
        say(done=checks.finish())
    except ClnnError as error:
        say(failed=str(error))
    except Exception as error:
        import traceback

        traceback.print_exc()
        with contextlib.suppress(OSError):
            say(failed=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(sys.argv[1])
