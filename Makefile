# make demo       the whole chain on the synthetic actor; does all set-up
# make test       lint and the tests of what a change usually breaks, some five minutes on two processors; does all set-up
# make test-slow  the tests marked slow: long trainings, whole runs of `process`, other people, the installed wheel
# make test-all   lint and all tests
# make bench      benchmarks of this machine, one table
# make bench-live AVATAR=me.avatar   load on the live service; CONVERSATIONS=2 MINUTES=1 MODE=video|landmarks CODEC=vp8|h264|jpeg
# make lint       ruff, mypy, import-linter

FITS := import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do $$p -c '$(FITS)' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
export HF_HUB_OFFLINE := 1

# whole files to each of as many processes as there are processors, at most four: what a file shares is made once
TESTS := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-slow test-all lint bench bench-live clean

demo: .venv/installed
	$(BIN)/talkhead demo demo --overwrite

test: lint
	$(TESTS) -m "not slow"

test-slow: .venv/installed-dev
	$(TESTS) -m slow

test-all: lint
	$(TESTS)

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/installed-dev
	$(BIN)/python -m pytest benchmarks/test_rasterize_cpu.py -q --benchmark-only --benchmark-columns=min,median,rounds --benchmark-sort=name

bench-live: .venv/installed-dev
	@test -n "$(AVATAR)" || { echo "name an avatar: make bench-live AVATAR=me.avatar"; exit 1; }
	$(BIN)/python benchmarks/live.py "$(AVATAR)" --conversations $(or $(CONVERSATIONS),2) --minutes $(or $(MINUTES),1) \
	  --mode $(or $(MODE),video) --codec $(or $(CODEC),vp8)

.venv/created:
	@test -n "$(PYTHON)" || { echo "talkhead needs Python 3.11 to 3.14 with venv: apt install python3-venv"; exit 1; }
	@$(PYTHON) -c '$(FITS)' || { echo "talkhead needs Python 3.11 to 3.14, found $$($(PYTHON) --version)"; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "venv needs ensurepip: apt install python3-venv"; exit 1; }
	@touch $@

.venv/installed: .venv/created setup.cfg pyproject.toml constraints.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e .
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv demo
