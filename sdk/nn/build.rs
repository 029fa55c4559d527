//! Lets programs, plugins and tests find libtorch at run time, and compiles the one shim that needs C++.

fn main() {
    advdmd_build::link_libtorch();
    println!("cargo::rerun-if-changed=src/memory.cpp");
    let Some(libtorch) = std::env::var_os("LIBTORCH").map(std::path::PathBuf::from) else { return };
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        .include(libtorch.join("include"))
        .file("src/memory.cpp")
        // libtorch's headers, not ours.
        .warnings(false)
        .compile("advdmd_memory");
    println!("cargo::rustc-link-search=native={}", libtorch.join("lib").display());
    println!("cargo::rustc-link-lib=dylib=c10");
}
