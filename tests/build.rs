//! Lets the program find libtorch at run time, and the benchmark count calls of it.

/// What `bench/counts.rs` wraps.
const COUNTED: [&str; 7] = [
    "at_copy_data",
    "at_double_value_at_indexes",
    "at_int64_value_at_indexes",
    "at_tensor_of_data",
    "atg_equal",
    "atg_is_nonzero",
    "atg_nonzero",
];

fn main() {
    advdmd_build::link_libtorch();
    for function in COUNTED {
        println!("cargo::rustc-link-arg-benches=-Wl,--wrap={function}");
    }
}
