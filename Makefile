# servin. `make help` lists what can be asked for; the work is done by the scripts in scripts/.
.DEFAULT_GOAL := help
.PHONY: help build run guest test lint fuzz fuzz-replay bench soak cross-check nested clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 22

build: ## the servin binary alone (target/release/servin)
	cargo build --release --locked -p servin

run: ## build everything and run a container in a microVM
	@scripts/run.sh

guest: ## guest kernel, initramfs and base image alone (target/guest)
	@scripts/guest.sh

test: ## everything that CI proves, with a summary
	@scripts/test.sh

lint: ## format, clippy, licenses
	@scripts/test.sh lint

fuzz: ## every fuzz target for $SECONDS_EACH seconds (60), new inputs kept in fuzz/corpus
	@scripts/fuzz.sh

fuzz-replay: ## every input in fuzz/corpus through its fuzz target
	@scripts/test.sh fuzz

bench: ## boot by instruction count, the network beside passt, and device throughput
	@scripts/bench.sh

soak: ## 1,000 containers one after another, 50 at once, 100 clones side by side: nothing left, nothing twice
	@tests/soak.sh

cross-check: ## the crates that compile for other targets, checked and linted there
	@scripts/cross-check.sh

nested: ## the nested host's own checks
	@tests/nested/selftest.sh

clean: ## what was built here; caches below ~/.cache/servin stay
	rm -rf target initramfs/agent/target fuzz/target
