//! Lets the plugin and its tests find libtorch when they are loaded.

fn main() {
    advdmd_build::link_libtorch();
}
