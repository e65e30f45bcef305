"""The one door: `python -m lora_exp ...`, and `lora-exp`."""

import atexit
import gc
import io
import os
import sys

from lora_exp import cli


def main() -> None:
    """`lora_exp.cli.main`, whatever the locale: names of files may have any letters."""
    # LC_ALL=C and PYTHONUTF8=0, or Latin-1; and once alone, for Python may be told to ignore it.
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    if isinstance(sys.stdout, io.TextIOWrapper):  # PYTHONIOENCODING may name one without ellipsis
        sys.stdout.reconfigure(errors="replace")
    atexit.register(gc.freeze)  # else the end looks for cycles among torch's objects: a second
    cli.main()


if __name__ == "__main__":
    main()
