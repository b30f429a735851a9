# Short names for the commands. Everything works without just: see `cargo xtask --help`.

# List the recipes
default:
    @just --list

# Build everything and run berth; arguments go to `berth up`
up *arguments:
    cargo xtask up -- {{ arguments }}

# Run every test, or those whose name contains a filter
test *filters:
    cargo xtask test {{ filters }}

# Measure berth against plain hyper and `wasmtime serve`
bench *options:
    cargo xtask bench {{ options }}

# Build the guest components into target/plugins/
guests:
    cargo xtask guests

# Formatting, lints and documentation of the host
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# Try random inputs for some minutes, after those that once failed; see host/berth-host/README.md
fuzz minutes="5":
    end=$(( $(date +%s) + {{ minutes }} * 60 )); while [ "$(date +%s)" -lt "$end" ]; do PROPTEST_CASES=20000 cargo xtask test fuzz || exit 1; done

# A million requests on reused instances that leak: the host's memory must stay where it is
soak calls="1000000":
    BERTH_TEST_LEAK_CALLS={{ calls }} cargo xtask test resource_leak

# Measure parts of the library; see host/berth-host/benches/README.md
bench-parts *options:
    cargo xtask guests
    cargo bench --workspace --bench route --bench instantiate -- {{ options }}
