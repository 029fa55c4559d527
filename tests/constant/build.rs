//! Lets the library find libtorch at run time.

fn main() {
    advdmd_build::link_libtorch();
}
