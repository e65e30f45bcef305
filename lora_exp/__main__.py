"""The one door: `python -m lora_exp ...`, and `lora-exp`."""

import io
import os
import sys

from lora_exp import cli


def main() -> None:
    """`lora_exp.cli.main`, whatever the locale: names of files may have any letters."""
    if sys.getfilesystemencoding() == "ascii":  # LC_ALL=C and PYTHONUTF8=0
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    if isinstance(sys.stdout, io.TextIOWrapper):  # such as Latin-1, which has no ellipsis
        sys.stdout.reconfigure(errors="replace")
    cli.main()


if __name__ == "__main__":
    main()
