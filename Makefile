# make demo   sets everything up and runs the main job      make test   sets everything up and tests
# make check  lint, types, import contracts, size caps      make data   full Fashion-MNIST and MNIST into data/
# make bench  the committed benchmark tables, made again    make newest the tests with the newest torch that installs
# make zoo    cut against masked on the whole zoo and a thousand random networks (most of an hour)
# make peers  karui beside the tools that do a part of its work, some in environments of their own (hours; resumable)
# make families  torchvision's models and 85 timm families, in an environment of their own (an hour; resumable)
PYTHON ?= python3
BIN := .venv/bin
ORT_WEB := 1.30.0
NPM := npm install --silent --ignore-scripts --no-audit --no-fund

.PHONY: demo test check data bench zoo families peers newest clean

demo: .venv/ready-to-run
	$(BIN)/karui demo

test: .venv/ready-to-develop .venv/node_modules/onnxruntime-web/package.json .venv-litert/ready
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: .venv/ready-to-develop
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest tests/test_architecture.py

data: .venv/ready-to-run
	$(BIN)/python benchmarks/data.py --to data

bench: .venv/ready-to-develop data
	$(BIN)/python benchmarks/run.py

zoo: .venv/ready-to-develop
	$(BIN)/python -m benchmarks.zoo.sweep > benchmarks/results/zoo.md

families: .venv-families/ready
	PYTHONPATH=src:. OMP_NUM_THREADS=1 .venv-families/bin/python -m benchmarks.families.sweep --rows .venv-families/rows > benchmarks/results/families.md

peers: .venv/ready-to-develop data
	for name in mnist fashion; do \
		test -f data/checkpoints/$$name.safetensors || $(BIN)/python -m benchmarks.networks.train $$name || exit 1; done
	$(BIN)/python -m benchmarks.real.packages
	$(BIN)/python -m benchmarks.peers --build --karui --table > benchmarks/results/peers.md

.venv-families/ready:
	$(PYTHON) -m venv .venv-families
	.venv-families/bin/pip install --quiet torch==2.14.1 torchvision==0.29.1 timm numpy rich safetensors
	.venv-families/bin/pip install --quiet --no-deps torch-pruning==1.6.1
	@touch $@

# LiteRT's converter fits no other runtime's packages; the same torch reads what torch has saved
.venv-litert/ready: constraints-litert.txt
	$(PYTHON) -m venv .venv-litert
	.venv-litert/bin/pip install --quiet -c constraints-litert.txt torch==2.13.0 litert-torch==0.10.0
	@touch $@

newest:
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet -e '.[dev]'
	$(NPM) --prefix .venv-newest onnxruntime-web@$(ORT_WEB)
	$(PYTHON) -m venv .venv-newest-litert
	.venv-newest-litert/bin/pip install --quiet litert-torch $$(.venv-newest/bin/pip freeze | grep "^torch==" | cut -d+ -f1)
	KARUI_LITERT_PYTHON=$(CURDIR)/.venv-newest-litert/bin/python .venv-newest/bin/python -m pytest -n 2 --dist loadfile

.venv/pip:
	$(PYTHON) -m venv .venv
	@touch $@

.venv/ready-to-run: .venv/pip pyproject.toml constraints.txt
	$(BIN)/pip install --quiet -c constraints.txt -e '.[cpu]'
	@touch $@

.venv/ready-to-develop: .venv/ready-to-run
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

.venv/node_modules/onnxruntime-web/package.json: .venv/pip
	$(NPM) --prefix .venv onnxruntime-web@$(ORT_WEB)
	@touch $@

clean:
	rm -rf .venv .venv-newest .venv-newest-litert .venv-families .venv-litert .venv-peers karui-runs .pytest_cache .mypy_cache .ruff_cache
