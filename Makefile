# What one does with Tramline's sources. `make` alone says so.

.DEFAULT_GOAL := help
.PHONY: help run check test deny bench bench-store

help: ## Show this list.
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

run: ## Build for speed and start with ./routes.yaml.
	cargo run --release

check: ## Say whether ./routes.yaml and its plugins are valid.
	cargo run --quiet -- check

test: ## Run every test there is, and install what they need.
	@tests/run.sh

deny: ## Check licences, sources, bans and known advisories of the dependencies.
	cargo deny check

bench: ## Measure what messages cost, beside npm ws, socket.io and bun; e.g. make bench BENCH=--quick
	@benches/run.sh $(BENCH)

bench-store: ## Measure the log: publishes a second, and questions to 1 and 10 million events.
	cargo bench --bench store
