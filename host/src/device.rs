//! Choice of device and threads; CUDA is found at run time.

use tch::{Cuda, Device};

use crate::config::Compute;
use crate::{Error, Result};

/// The device of a configuration, ready for use, with libtorch's thread count set.
///
/// # Errors
/// A device that is not named `cpu`, `cuda` or `cuda:N`, or CUDA that cannot be had: says what is missing.
pub fn select(compute: &Compute) -> Result<Device> {
    if compute.threads > 0 {
        let threads = i32::try_from(compute.threads)
            .map_err(|_| Error::config(format!("compute.threads: {} is too large", compute.threads)))?;
        tch::set_num_threads(threads);
    }
    let index = match compute.device.as_str() {
        "cpu" => return Ok(Device::Cpu),
        "cuda" => 0,
        other => other.strip_prefix("cuda:").and_then(|index| index.parse().ok()).ok_or_else(|| {
            Error::config(format!("compute.device: expected `cpu`, `cuda` or `cuda:N`, found `{other}`"))
        })?,
    };
    advdmd_sdk::abi::cuda::load()
        .map_err(|source| Error::config(format!("compute.device = \"{}\": {source}", compute.device)))?;
    let found = Cuda::device_count();
    if index as i64 >= found {
        return Err(Error::config(format!(
            "compute.device = \"{}\": libtorch sees {found} CUDA devices",
            compute.device
        )));
    }
    Ok(Device::Cuda(index))
}

/// The same device in the SDK's terms.
pub fn sdk(device: Device) -> advdmd_sdk::Device {
    match device {
        Device::Cuda(index) => advdmd_sdk::Device::Cuda(index),
        _ => advdmd_sdk::Device::Cpu,
    }
}
