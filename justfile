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
