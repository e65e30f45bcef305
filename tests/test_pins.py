"""What CI installs is pinned in constraints.txt, and the hashes of its files in hashes.txt."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]

CI = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": "3.11.0",
    "python_version": "3.11",
    "sys_platform": "linux",
}


def pinned(file: str) -> dict[str, tuple[str, list[str]]]:
    """The packages of a requirements file: each one's version, and the options after it."""
    packages = {}
    for line in (ROOT / file).read_text().replace("\\\n", "").splitlines():
        if not line.startswith("#"):
            pin, *options = line.split()
            name, version = pin.split("==")
            packages[canonicalize_name(name)] = version, options
    return packages


def test_the_hashes_are_of_the_pinned_versions():
    """Else: the command at the top of hashes.txt makes it anew."""
    pins = {name: version for name, (version, _) in pinned("constraints.txt").items()}
    hashed = pinned("hashes.txt")
    assert {name: version for name, (version, _) in hashed.items()} == pins
    for name, (_, options) in hashed.items():
        assert options, name
        for option in options:
            assert re.fullmatch("--hash=sha256:[0-9a-f]{64}", option), (name, option)


def test_the_build_of_torch_that_ci_takes_is_of_the_pinned_version():
    version, _ = pinned("constraints.txt")["torch"]
    [(name, (build, [_]))] = pinned(".ci/torch.txt").items()
    assert (name, build) == ("torch", version + "+cpu")


def test_all_that_the_tests_need_is_pinned():
    """Else pip would fetch the rest by itself, and no hash would be compared."""
    pins = {"lora-exp", *pinned("constraints.txt")}
    met, to_meet = set(), {("lora-exp", "dev")}
    while to_meet:
        name, extra = package = to_meet.pop()
        met.add(package)
        for requirement in map(Requirement, metadata.requires(name) or ()):
            if requirement.marker and not requirement.marker.evaluate({**CI, "extra": extra}):
                continue
            needed = canonicalize_name(requirement.name)
            if name == "torch" and needed not in pins:
                continue  # a CUDA build's own
            assert needed in pins, f"{needed}, which {name} needs"
            to_meet |= {(needed, extra) for extra in ("", *requirement.extras)} - met
