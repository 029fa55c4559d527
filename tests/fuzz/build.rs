//! Lets the program find libtorch at run time.

fn main() {
    advdmd_build::link_libtorch();
}
