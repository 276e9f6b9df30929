# make demo   set everything up and watch radiographs become a worklist
# make test   set everything up and pass all tests
# Both work from a fresh clone on a machine with Python 3.11, make and apt.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
ONCE ?=
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
APT := $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# A command, or another file, of each Debian package that the tests need, and the packages.
PLUGIN := /usr/share/orthanc/plugins/libOrthancPython.so /usr/share/orthanc/plugins/libOrthancDicomWeb.so
PROGRAMS := dcmsend dciodvfy ojph_compress pg_lsclusters ps /usr/sbin/Orthanc $(PLUGIN) openssl chromium strace faketime systemd-analyze promtool swift-proxy-server swift-object-server swift-container-server swift-account-server
PACKAGES := dcmtk dicom3tools openjph-tools postgresql procps orthanc orthanc-dicomweb orthanc-python openssl chromium strace faketime systemd prometheus swift-proxy swift-object swift-container swift-account

.PHONY: demo test lint pytest faults ray bench audit story champion samples clean

demo: $(VENV)/runs
	@$(BIN)/python deploy/demo.py $(if $(ONCE),--once)

test: lint pytest

lint: $(VENV)/tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

pytest: $(VENV)/tests $(VENV)/programs
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(PYTEST)

# The fault suite in its long form, for hours; its short form (FAULTS=short) is a part of `test`.
# Single amounts by FAULTS_..., see docs/reliability.md.
FAULTS ?= full
ray: $(VENV)/tests $(VENV)/programs
	ON_RAY=full $(BIN)/python -m pytest tests/integration/test_elsewhere.py \
		tests/integration/test_backfile.py tests/integration/test_champion.py \
		tests/integration/test_retrain.py -k "ray or cluster or elsewhere" $(PYTEST)

faults: $(VENV)/tests $(VENV)/programs
	FAULTS=$(FAULTS) $(BIN)/python -m pytest tests/faults $(PYTEST)

# Asks the advisory data base about each pinned version: needs the internet.
audit: $(VENV)/tests
	$(BIN)/python -m pip check
	$(BIN)/python -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(VENV)/audit/bin/pip-audit --strict --disable-pip --no-deps -r constraints.txt

# Beside others and floors; fails where a ratio is 25% behind the record. BENCH: names, or --record.
bench: $(VENV)/tests $(VENV)/programs
	$(BIN)/python -m tests.benchmarks $(BENCH)

# The loop that learns, told on the real radiographs: DATA is the folder that has train/.
story: $(VENV)/tests
	$(BIN)/python -m tests.acceptance.story $(if $(DATA),--data $(DATA))

# The bundled champion from nothing, in about an hour and a half: DATA is the folder that has train/.
OUT ?= champion
champion: $(VENV)/tests
	$(BIN)/python -m training crossvalidate --data $(DATA) --seed 1 --out $(OUT)/folds
	test -e $(OUT)/trained/model.json || $(BIN)/python -m training fit --data $(DATA) --seed 1 \
		--architecture efficientnet_lite0 --crossvalidated $(OUT)/folds --fold 1 --out $(OUT)/trained
	test -e $(OUT)/version/model.json || $(BIN)/python -m training stress --data $(DATA) --pictures 1304 \
		--model $(OUT)/trained --into $(OUT)/version --out $(OUT)/robustness.md
	$(BIN)/python -m training card --model $(OUT)/version --out $(OUT)/model-card.md

samples: $(VENV)/runs
	$(BIN)/python sample_dicom/draw.py

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -m venv $(VENV) || { $(APT) update -q && $(APT) install -qy python3.11-venv && $(PYTHON) -m venv --clear $(VENV); }

$(VENV)/runs: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing cxr-triage into $(VENV)"
	@$(PIP) -e .
	@touch $@

$(VENV)/tests: $(VENV)/runs
	@echo "Installing what the tests need, TensorFlow among it"
	@$(PIP) -e '.[test]'
	@touch $@

$(VENV)/programs: $(VENV)/bin/python
	@for program in $(PROGRAMS); do command -v $$program >/dev/null || [ -e $$program ] || missing=1; done; \
	if [ -n "$$missing" ]; then $(APT) update -q && $(APT) install -qy --no-install-recommends $(PACKAGES); fi
	@touch $@
