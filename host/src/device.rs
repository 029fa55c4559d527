//! Choice of device and threads; CUDA is found at run time.

use advdmd_nn::memory;
use advdmd_sdk::abi::cuda;
use tch::{Cuda, Device, Tensor};

use crate::config::Compute;
use crate::{Error, Result};

/// What [`parse`] takes, in words.
pub const NAMES: &str = "\"cpu\", \"cuda\" or \"cuda:N\"";

/// The device of that name; `None` for any other text.
#[must_use]
pub fn parse(name: &str) -> Option<Device> {
    match name {
        "cpu" => Some(Device::Cpu),
        "cuda" => Some(Device::Cuda(0)),
        other => other.strip_prefix("cuda:")?.parse().ok().map(Device::Cuda),
    }
}

/// The device of a configuration, ready for use, with libtorch's thread count set.
///
/// # Errors
/// A device or number of threads that [`config`](crate::config) refuses, or CUDA that cannot be had: says what is missing.
pub fn select(compute: &Compute) -> Result<Device> {
    let Compute { device: name, threads, .. } = compute;
    if *threads > 0 {
        let count =
            i32::try_from(*threads).map_err(|_| Error::usage(format!("{threads} threads are too many"), None))?;
        tch::set_num_threads(count);
    }
    let device = parse(name).ok_or_else(|| Error::usage(format!("no device {name:?}: expected {NAMES}"), None))?;
    let Device::Cuda(index) = device else {
        memory::keep_freed();
        return Ok(device);
    };
    cuda::load().map_err(|cause| {
        let hint = format!(
            "install Python's torch 2.11.0 with CUDA and set {} to its `torch/lib` folder; `--device cpu` does without",
            cuda::FOLDER_VARIABLE
        );
        Error::usage(format!("device {name:?} needs CUDA, which cannot be loaded: {cause}"), hint)
    })?;
    let found = Cuda::device_count();
    if index as i64 >= found {
        let message = match found {
            0 => format!("device {name:?}: libtorch sees no CUDA device"),
            found => format!("device {name:?}: libtorch sees {found}, \"cuda:0\" to \"cuda:{}\"", found - 1),
        };
        let hint = "`nvidia-smi` lists the devices and the driver; `--device cpu` does without".to_owned();
        return Err(Error::usage(message, hint));
    }
    Ok(device)
}

/// A tensor of the CPU on `device`, without waiting for what the device has to do: the copy goes through page-locked memory and
/// takes its place in the queue.
///
/// # Errors
/// libtorch's, for lack of memory.
pub fn upload(tensor: &Tensor, device: Device) -> Result<Tensor> {
    if !device.is_cuda() {
        return Ok(tensor.f_to_device(device)?);
    }
    let pinned = tensor.f_pin_memory(device)?;
    Ok(pinned.f_to_device_(device, tensor.f_kind()?, true, false)?)
}

/// The same device in the SDK's terms.
pub fn sdk(device: Device) -> advdmd_sdk::Device {
    match device {
        Device::Cuda(index) => advdmd_sdk::Device::Cuda(index),
        _ => advdmd_sdk::Device::Cpu,
    }
}
