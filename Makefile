# Each target makes .venv and installs what it needs; once that is there, it costs nothing.
#
# torch: constraints.txt pins the version, pip picks the build. On Linux that is a CUDA build of
# several GB. For another one (CPU only, another CUDA), install it first; make keeps it, since the
# pin holds for every build of that version:
#     make .venv/bin/python
#     .venv/bin/python -m pip install torch==2.13.0 --index-url <the index PyTorch's site names>

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench

VENV := .venv/bin/python
INSTALL := $(VENV) -m pip install --disable-pip-version-check
# Nothing here needs a model hub: the demo's backbone comes with a package.
OFFLINE := HF_HUB_OFFLINE=1

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' $(firstword $(MAKEFILE_LIST))

demo: .venv/.demo ## a small study from start to end, on this machine, offline, and its report page
	$(OFFLINE) $(VENV) -m lora_exp study=demo
	$(VENV) -m lora_exp report grid=demo
	@$(VENV) -m lora_exp report grid=demo --html outputs/demo.html
	@echo "Open it in a browser: file://$(CURDIR)/outputs/demo.html"

test: .venv/.dev ## the tests
	$(VENV) -m pytest -n logical --dist loadfile --no-loadscope-reorder

lint: .venv/.dev ## ruff (rules and format) and pyright
	$(VENV) -m ruff check .
	$(VENV) -m ruff format --check .
	$(VENV) -m pyright

bench: .venv/.dev ## the speed figures and the parity table, in benchmarks/
	@set -e; for script in lora speed parity; do \
		echo "== benchmarks/$$script.py"; $(OFFLINE) $(VENV) benchmarks/$$script.py; done

# A stamp says that an extra is installed as these files ask for; dev includes demo.
.venv/.demo: pyproject.toml constraints.txt | $(VENV)
	$(INSTALL) -c constraints.txt -e '.[demo]'
	@touch $@

# What CI installs: pip compares every file with hashes.txt before it uses it. setuptools comes first:
# a package without a wheel is built with it, and not with what pip would fetch for that by itself.
# The last line fetches only what a CUDA build of torch brings along, unhashed; on CI, nothing.
.venv/.dev: pyproject.toml constraints.txt hashes.txt | $(VENV)
	sed -n '/^setuptools==/,/[^\\]$$/p' hashes.txt | $(INSTALL) --require-hashes -r /dev/stdin
	$(INSTALL) --require-hashes --no-deps --no-build-isolation -r hashes.txt
	$(INSTALL) --no-build-isolation -c constraints.txt -e '.[dev]'
	@touch $@ .venv/.demo

# `ensurepip` is what Debian's python3 lacks without python3-venv.
.venv/bin/python:
	@for python in python3.11 python3 python3.12 python3.13 python3.14; do \
		$$python -c 'import sys; assert sys.version_info >= (3, 11)' 2>/dev/null || continue; \
		$$python -c 'import ensurepip' 2>/dev/null || { lacking=$$python; continue; }; \
		exec $$python -m venv .venv; \
	done; \
	if [ "$$lacking" ]; then \
		echo "$$lacking cannot make virtual environments;" \
			"on Debian and Ubuntu: apt-get install python3-venv"; \
	else \
		echo "lora_exp needs Python 3.11 or newer, and none is on PATH;" \
			"on Debian 12 and newer: apt-get install python3 python3-venv"; \
	fi >&2; exit 1
