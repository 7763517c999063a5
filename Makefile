# Everything runs in .venv, made by uv from requirements.lock; Label Studio and the peers of the benchmarks have environments of their own.
PYTHON ?= python3
BIN := .venv/bin
BENCH := .venv-bench/bin
TORCH ?= cuda

.DEFAULT_GOAL := help
.PHONY: help install demo test check bench soak sbom audit down format lock clean

help: ## list the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */  make \1|/' | column -t -s '|'

.venv/ready: requirements.lock pyproject.toml
	@if test ! -x $(BIN)/uv; then \
		if command -v uv >/dev/null; then uv venv --quiet --clear --python '>=3.11,<3.14' .venv && uv pip install --quiet --python $(BIN)/python uv; \
		else $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "labelcycle needs Python 3.11 to 3.13, this is " + sys.version + "; name another: make PYTHON=python3.12")' \
			&& $(PYTHON) -m venv --clear .venv && $(BIN)/python -m pip install --quiet uv; fi; fi
ifeq ($(TORCH),cpu)
	sed -E -f deploy/without-cuda.sed requirements.lock > .venv/cpu.lock
	$(BIN)/uv pip sync --quiet --compile-bytecode --require-hashes --python $(BIN)/python .venv/cpu.lock
	grep -oE '^(torch|torchvision)==[^ ]+' requirements.lock | $(BIN)/uv pip install --quiet --no-deps --torch-backend cpu --python $(BIN)/python -r -
else
	$(BIN)/uv pip sync --quiet --compile-bytecode --require-hashes --python $(BIN)/python requirements.lock
endif
	$(BIN)/uv pip install --quiet --no-deps --python $(BIN)/python --editable .
	@touch $@

install: .venv/ready ## make the environment, in .venv; TORCH=cpu leaves out CUDA, 5 GB, where there is no GPU

demo: .venv/ready ## run a whole campaign: servers, rounds, a simulated annotator; TASK=multi_label, segmentation, detection
	$(BIN)/labelcycle demo $(if $(TASK),--task $(TASK))

test: .venv/ready ## run all tests, against real servers
	$(BIN)/python -m pytest --numprocesses 3 # also on two cores: some wait for servers

check: .venv/ready ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv-bench/ready: benchmarks/requirements.lock | .venv/ready
	@test -x $(BENCH)/python || $(BIN)/uv venv --quiet --python $(BIN)/python .venv-bench
	$(BIN)/uv pip sync --quiet --require-hashes --python $(BENCH)/python benchmarks/requirements.lock
	@touch $@

bench: .venv-bench/ready ## measure beside the peers: all, or MODULE=selection; JSON=OUT writes the numbers, ARGS=--quick tries it
	@for module in $(or $(MODULE),selection scoring); do \
		$(BENCH)/python -m benchmarks.$$module $(if $(JSON),--json $(if $(MODULE),$(JSON),$(basename $(JSON))-$$module.json)) $(ARGS) || exit; done

soak: .venv/ready ## long trials against real servers: TRIAL=growth, kills, campaigns or absence; ARGS="--rounds 5"
	$(BIN)/python -m tests.soak $(or $(TRIAL),growth) $(ARGS)

sbom: .venv/ready ## write the software bill of materials, CycloneDX: OUT=sbom.json
	$(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --of JSON -o $(or $(OUT),sbom.json) requirements.lock

audit: .venv/ready ## compare the lock with published vulnerabilities; needs the internet
	$(BIN)/pip-audit --requirement requirements.lock --require-hashes --disable-pip --no-deps --strict

down: .venv/ready ## stop the local servers
	$(BIN)/labelcycle down

format: .venv/ready ## format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: .venv/ready ## resolve the versions again
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --generate-hashes --no-header --quiet --upgrade --python-version 3.11 -o requirements.lock
	cp requirements.lock deploy/requirements.lock # its versions come first, here and in the next
	$(BIN)/uv pip compile pyproject.toml --extra cloud --extra postgres --extra ray --extra s3 --extra timm --universal --generate-hashes --no-header --quiet --python-version 3.11 -o deploy/requirements.lock
	cp requirements.lock benchmarks/requirements.lock
	$(BIN)/uv pip compile pyproject.toml --extra bench --universal --generate-hashes --no-header --quiet --python-version 3.11 -o benchmarks/requirements.lock
	$(BIN)/uv pip compile deploy/label-studio.in --universal --generate-hashes --no-header --quiet --upgrade --python-version 3.11 -o deploy/label-studio.lock

clean: down ## remove the environments; campaigns and the servers' data stay
	rm -rf .venv .venv-bench .labelcycle/label-studio-venv
