//! What libtorch's own interface for Rust does not have, and a libtorch of another version, as far as it says: this library
//! preloaded into the program answers in libtorch's place.

/// libtorch's function for its version, with the answer of libtorch 2.10.0. Nobody finds it in a library that is loaded as
/// a plugin, whose symbols are its own.
// SAFETY: the signature is libtorch's.
#[unsafe(no_mangle)]
pub extern "C" fn aoti_torch_abi_version() -> u64 {
    u64::from_be_bytes([2, 10, 0, 0, 0, 0, 0, 0])
}

// SAFETY: the name is that of `void c10::set_default_dtype(caffe2::TypeMeta)`; a `TypeMeta` is one `uint16_t`, which for the
// types of tensors is the number of `c10::ScalarType`.
unsafe extern "C" {
    #[link_name = "_ZN3c1017set_default_dtypeEN6caffe28TypeMetaE"]
    fn c10_set_default_dtype(dtype: u16);
}

/// Makes float64 the type of numbers without a type, for the whole process.
pub fn default_to_double() {
    /// `c10::ScalarType::Double`.
    const DOUBLE: u16 = 7;
    // SAFETY: as above.
    unsafe { c10_set_default_dtype(DOUBLE) }
}
