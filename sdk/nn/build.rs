//! Lets programs, plugins and tests find libtorch at run time, and compiles the shims that need C++.

const SHIMS: [&str; 2] = ["src/memory.cpp", "src/checkpoint/checkpoint.cpp"];

fn main() {
    advdmd_build::link_libtorch();
    for shim in SHIMS {
        println!("cargo::rerun-if-changed={shim}");
    }
    let Some(libtorch) = std::env::var_os("LIBTORCH").map(std::path::PathBuf::from) else { return };
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        .include(libtorch.join("include"))
        .files(SHIMS)
        // libtorch's headers, not ours.
        .warnings(false)
        .compile("advdmd_shims");
    println!("cargo::rustc-link-search=native={}", libtorch.join("lib").display());
    println!("cargo::rustc-link-lib=dylib=torch_cpu");
    println!("cargo::rustc-link-lib=dylib=c10");
}
