"""The one door: `python -m lora_exp ...`."""

from lora_exp.cli import main

if __name__ == "__main__":
    main()
