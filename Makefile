# make demo: the whole paper on the toy world, on 2 CPU cores.
# make test: the test suite.
# make test-gpu: the tests that need a GPU, in a process of their own.
# All make their own virtual environment. docs/real_models.md says how to get a smaller torch.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python

demo: $(VENV)/.ready
	$(RUN) -m results.demo

test: $(VENV)/.ready-tests
	$(RUN) -m ruff check .
	$(RUN) -m pytest -q -n 2 --dist loadfile

test-gpu: $(VENV)/.ready-tests
	ACCELERATE_USE_CPU=0 $(RUN) -m pytest -q tests/gpu

$(VENV)/.ready: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q -r requirements.txt
	touch $@

$(VENV)/.ready-tests: $(VENV)/.ready tests/requirements.txt
	$(VENV)/bin/pip install -q -r tests/requirements.txt
	touch $@

.PHONY: demo test test-gpu
