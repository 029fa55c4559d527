//! Lets programs, plugins and tests find libtorch at run time.

fn main() {
    advdmd_build::link_libtorch();
}
