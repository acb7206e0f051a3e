# Two commands matter: `make demo` shows the main job, `make test` proves it. Both set everything up.
VENV ?= .venv
PYTHON ?= python3
RUN := $(VENV)/bin/python -m

.PHONY: demo test pytest lint types setup peers bench licences audit clean help

help:
	@echo "make demo   set up, then run the main job on a phantom site"
	@echo "make test   set up, then run linter, type checker and tests"
	@echo "make bench  measure a 300-slice study end to end"
	@echo "make licences  list what is installed with its licences; fails on the GPL"
	@echo "make audit  known vulnerabilities of the pinned versions (needs the network)"
	@echo "make clean  remove the virtual environment and everything made"

demo: $(VENV)/.installed
	$(RUN) daemon demo --out demo-out $(DEMO_ARGS)

test: $(VENV)/.installed-test peers
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(VENV)/bin/python .ci/licences
	@$(MAKE) --jobs=2 --no-print-directory types pytest
	@echo "make test: everything passed"

# Two workers share two cores: threads of theirs would wait for each other most of the time.
pytest: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(RUN) pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(VENV)/.installed-test
	$(RUN) ruff check .
	$(RUN) ruff format --check .

types: $(VENV)/.installed-test
	$(RUN) mypy

bench: $(VENV)/.installed-test peers
	$(RUN) benchmarks.main_job

licences: $(VENV)/.installed-test
	$(VENV)/bin/python .ci/licences

# Known vulnerabilities of the pinned versions; needs an advisory service, which CI may not reach.
audit: $(VENV)/.installed-test
	$(PYTHON) -m venv $(VENV)-audit && $(VENV)-audit/bin/pip install --quiet pip-audit
	$(VENV)-audit/bin/pip-audit --service osv --disable-pip --no-deps --requirement constraints.txt

setup: $(VENV)/.installed-test peers

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "setup: installing the daemon into $(VENV) (torch is several GB; this happens once)"
	PYTHON=$(PYTHON) ./.ci/venv $(VENV) .
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt
	@echo "setup: installing the daemon and its test tools into $(VENV) (torch is several GB; this happens once)"
	PYTHON=$(PYTHON) ./.ci/venv $(VENV) '.[test]'
	@touch $@ $(VENV)/.installed

peers:
	@./.ci/peers

clean:
	rm -rf $(VENV) $(VENV)-audit demo-out artefacts build *.egg-info
