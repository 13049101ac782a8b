# Two commands work on a fresh Debian 12 machine with rustup, as root: `make demo`, `make test`.
# Everything else is `cargo xtask --help`.

.PHONY: demo test test-cgroup2 cc
demo: cc
	cargo xtask demo

test-cgroup2: cc
	cargo xtask test --e2e --only cgroup2_guest

test: cc
	cargo xtask test

# Cargo cannot link anything without a C compiler; all other packages are xtask's to install.
cc:
	@command -v cc >/dev/null || (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends gcc libc6-dev)
