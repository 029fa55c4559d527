//! This plugin needs no libtorch, but its tests do when the whole workspace is built.

fn main() {
    advdmd_build::link_libtorch_if_present();
}
