//! A libtorch of another version, as far as it says: this library preloaded into the program answers in libtorch's place.

/// libtorch's function for its version, with the answer of libtorch 2.10.0. Nobody finds it in a library that is loaded as
/// a plugin, whose symbols are its own.
// SAFETY: the signature is libtorch's.
#[unsafe(no_mangle)]
pub extern "C" fn aoti_torch_abi_version() -> u64 {
    u64::from_be_bytes([2, 10, 0, 0, 0, 0, 0, 0])
}
