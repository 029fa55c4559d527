#!/bin/sh
# rustc with the coverage that libFuzzer steers by. `cargo xtask fuzz` names it as RUSTC_WORKSPACE_WRAPPER, so that only
# this workspace is instrumented and its dependencies stay as they were built before. What runs during the build, without
# libFuzzer, is left alone: build scripts and their library.
case " $* " in
*" build_script_"* | *" --crate-name advdmd_build "*) exec "$@" ;;
esac
exec "$@" --cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares
