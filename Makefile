# Thin names for `python3 dev.py`: see there. Arguments for the tool: make test ARGS="-k cache"
PYTHON ?= python3
ARGS ?=

.PHONY: help demo test test-all check format bench bench-models bench-inference bench-lab bench-learning accuracy setup clean

help:
	@$(PYTHON) dev.py help

demo test test-all check format bench bench-models bench-inference bench-lab bench-learning accuracy setup clean:
	@$(PYTHON) dev.py $@ $(ARGS)
