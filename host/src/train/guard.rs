//! Keeps a gradient that is not finite from moving anything, without waiting for the device.

use tch::{Device, Kind, Tensor};

use crate::Result;

/// A flag on the device. Once a gradient norm of an update is not finite, every later optimiser step of that update is
/// skipped, so that networks and averages are afterwards what they were when it happened.
#[derive(Debug)]
pub struct Guard {
    tripped: Tensor,
}

impl Guard {
    /// A guard that lets everything pass.
    ///
    /// # Errors
    /// libtorch's, for lack of memory.
    pub fn new(device: Device) -> Result<Self> {
        Ok(Self { tripped: Tensor::f_zeros([0; 0], (Kind::Float, device))? })
    }

    /// Trips where `norm` (a scalar) is not finite.
    pub fn watch(&mut self, norm: &Tensor) {
        let bad = norm.detach().isfinite().logical_not().to_kind(Kind::Float).to_device(self.tripped.device());
        self.tripped = self.tripped.maximum(&bad);
    }

    /// Whether it has tripped; waits for the device.
    pub fn has_tripped(&self) -> bool {
        self.tripped.double_value(&[]) > 0.0
    }

    /// 1 after a norm that was not finite, else 0: 0-dim float32 on the device.
    pub fn tripped(&self) -> &Tensor {
        &self.tripped
    }
}
