//! The names that a pickle may ask for: none of them runs anything.

use super::{Callable, Value};

const DTYPES: [(&str, &str); 12] = [
    ("FloatStorage", "float32"),
    ("HalfStorage", "float16"),
    ("BFloat16Storage", "bfloat16"),
    ("DoubleStorage", "float64"),
    ("LongStorage", "int64"),
    ("IntStorage", "int32"),
    ("ShortStorage", "int16"),
    ("CharStorage", "int8"),
    ("ByteStorage", "uint8"),
    ("BoolStorage", "bool"),
    ("ComplexFloatStorage", "complex64"),
    ("ComplexDoubleStorage", "complex128"),
];

/// The value of a name, if it is one of the known ones.
pub(super) fn global(module: &[u8], name: &[u8]) -> Result<Value, String> {
    let callable = match (module, name) {
        (b"collections", b"OrderedDict") => Callable::OrderedDict,
        (b"torch._utils", b"_rebuild_tensor_v2") => Callable::Tensor,
        (b"torch._utils", b"_rebuild_parameter") => Callable::Parameter,
        (b"torch", b"Size") => Callable::Size,
        (b"torch", b"device") => Callable::Device,
        (b"torch", name) => {
            let storage = DTYPES.iter().find(|(storage, _)| storage.as_bytes() == name);
            if let Some((_, dtype)) = DTYPES.iter().find(|(_, dtype)| dtype.as_bytes() == name) {
                return Ok(Value::DType(dtype));
            }
            match storage {
                Some((_, dtype)) => Callable::Storage(dtype),
                None => return Err(refused(&spelled(b"torch", name))),
            }
        }
        _ => return Err(refused(&spelled(module, name))),
    };
    Ok(Value::Callable(callable))
}

/// A name as an error shows it: short, and without control characters.
pub(super) fn spelled(module: &[u8], name: &[u8]) -> String {
    let part = |bytes: &[u8]| -> String {
        String::from_utf8_lossy(bytes).chars().take(80).flat_map(char::escape_debug).collect()
    };
    format!("`{}.{}`", part(module), part(name))
}

pub(super) fn refused(what: &str) -> String {
    format!("the pickle asks to run {what}; refused")
}
