//! Lets the crate's tests find libtorch where there is one.

fn main() {
    advdmd_build::link_libtorch_if_present();
}
