//! Gradients of a list of parameters.

use advdmd_sdk::Result;
use tch::{COptimizer, Device, Kind, Tensor};

use crate::ffi;

/// Drops or zeroes the gradients of a list of parameters.
///
/// Autograd adds to the gradients that it finds, so a training step begins with one of the two.
#[derive(Debug)]
pub struct Gradients {
    parameters: Vec<Tensor>,
    /// tch offers no way to undefine a gradient but an optimiser's `zero_grad`, which does just that in libtorch; this
    /// one never steps.
    dropper: COptimizer,
}

impl Gradients {
    /// Of these parameters.
    ///
    /// # Errors
    /// libtorch's.
    pub fn new(parameters: &[(String, Tensor)]) -> Result<Self> {
        let mut dropper = COptimizer::sgd(0.0, 0.0, 0.0, 0.0, false)?;
        for (_, parameter) in parameters {
            dropper.add_parameters(parameter, 0)?;
        }
        let parameters = parameters.iter().map(|(_, parameter)| parameter.shallow_clone()).collect();
        Ok(Self { parameters, dropper })
    }

    /// Frees the gradients: the next backward pass makes them anew, which is faster than adding to zeros.
    ///
    /// # Errors
    /// libtorch's.
    pub fn drop_all(&self) -> Result<()> {
        Ok(self.dropper.zero_grad()?)
    }

    /// Fills the gradients that exist with zeros and keeps their memory.
    ///
    /// # Errors
    /// libtorch's.
    pub fn zero(&self) -> Result<()> {
        let gradients = defined(&self.parameters)?;
        let _no_grad = tch::no_grad_guard();
        ffi::foreach_zero_(&gradients)
    }
}

/// The gradients of those parameters that have one.
fn defined<'a>(parameters: impl IntoIterator<Item = &'a Tensor>) -> Result<Vec<Tensor>> {
    let mut gradients = Vec::new();
    for parameter in parameters {
        let gradient = parameter.f_grad()?;
        if gradient.defined() {
            gradients.push(gradient);
        }
    }
    Ok(gradients)
}

/// The Euclidean norm of all gradients together, as a 0-dim float32 tensor on their device; zero when there are none.
///
/// # Errors
/// libtorch's.
pub fn grad_norm(parameters: &[(String, Tensor)]) -> Result<Tensor> {
    norm(&defined(parameters.iter().map(|(_, parameter)| parameter))?, device_of(parameters))
}

/// Where the parameters lie; the CPU where there are none.
fn device_of(parameters: &[(String, Tensor)]) -> Device {
    parameters.first().map_or(Device::Cpu, |(_, parameter)| parameter.device())
}

/// Scales the gradients so that their norm is at most `max_norm`, and returns the norm before that: the arithmetic of
/// `torch.nn.utils.clip_grad_norm_`, without waiting for the device.
///
/// # Errors
/// libtorch's.
pub fn clip_grad_norm(parameters: &[(String, Tensor)], max_norm: f64) -> Result<Tensor> {
    let gradients = defined(parameters.iter().map(|(_, parameter)| parameter))?;
    let norm = norm(&gradients, device_of(parameters))?;
    let _no_grad = tch::no_grad_guard();
    let factor = (norm.f_add_scalar(1e-6)?.f_reciprocal()?.f_mul_scalar(max_norm)?).f_clamp_max(1.0)?;
    ffi::foreach_mul_(&gradients, &factor)?;
    Ok(norm)
}

/// `_foreach_norm` takes its order as a `Scalar`, which the C functions cannot pass: one norm per tensor, stacked.
fn norm(gradients: &[Tensor], device: Device) -> Result<Tensor> {
    if gradients.is_empty() {
        return Ok(Tensor::f_zeros([0; 0], (Kind::Float, device))?);
    }
    let _no_grad = tch::no_grad_guard();
    let norm =
        |gradient: &Tensor| -> Result<Tensor> { Ok(gradient.f_norm_scalaropt_dtype(2.0, Kind::Float)?.f_to(device)?) };
    let norms = gradients.iter().map(norm).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::f_stack(&norms, 0)?.f_norm_scalaropt_dtype(2.0, Kind::Float)?)
}
