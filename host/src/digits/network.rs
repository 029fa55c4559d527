//! The network that reads one cell: three convolutions, a feature of 32 numbers, eleven classes.

use advdmd_nn::Weights;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tch::{Device, Tensor};

use super::error::DigitsError;
use super::glyphs::GLYPH_SIDE;

/// Numbers in a cell's penultimate feature.
pub const CELL_FEATURES: i64 = 32;
/// Classes: the ten digits, then "empty".
pub const CLASSES: i64 = 11;

/// Names and shapes of the parameters, in the order of the forward pass.
const PARAMETERS: [(&str, &[i64]); 10] = [
    ("conv1.weight", &[16, 1, 3, 3]),
    ("conv1.bias", &[16]),
    ("conv2.weight", &[32, 16, 3, 3]),
    ("conv2.bias", &[32]),
    ("conv3.weight", &[48, 32, 3, 3]),
    ("conv3.bias", &[48]),
    ("hidden.weight", &[CELL_FEATURES, 48 * 16]),
    ("hidden.bias", &[CELL_FEATURES]),
    ("classes.weight", &[CLASSES, CELL_FEATURES]),
    ("classes.bias", &[CLASSES]),
];

/// The parameters of the cell network, in [`PARAMETERS`]' order.
#[derive(Debug)]
pub(crate) struct Network {
    parameters: Vec<Tensor>,
}

/// What the network says of cells.
pub(crate) struct Output {
    /// `[N, 11]`: digits 0 to 9, then empty.
    pub logits: Tensor,
    /// `[N, 32]`, from 0 up.
    pub features: Tensor,
}

impl Network {
    /// Makes every parameter with `make(name, shape)`.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn build(mut make: impl FnMut(&str, &[i64]) -> Result<Tensor, DigitsError>) -> Result<Self, DigitsError> {
        let parameters = PARAMETERS.iter().map(|(name, shape)| make(name, shape));
        Ok(Self { parameters: parameters.collect::<Result<_, _>>()? })
    }

    /// Takes weights whose names and shapes are exactly the network's.
    ///
    /// # Errors
    /// A parameter missing, unknown, of another shape, or not finite; `source` leads the message.
    pub fn from_weights(weights: &Weights, source: &str) -> Result<Self, DigitsError> {
        let layout = PARAMETERS.map(|(name, shape)| (name.to_owned(), shape.to_vec()));
        weights.check(&layout, source)?;
        let parameter = |(name, _): &(String, _)| {
            let tensor =
                weights.get(name).ok_or_else(|| DigitsError::Weights(format!("{source}: {name} is missing")))?;
            if all_finite(tensor)? {
                return Ok(tensor.shallow_clone());
            }
            Err(DigitsError::Weights(format!("{source}: {name} holds NaN or infinity")))
        };
        Ok(Self { parameters: layout.iter().map(parameter).collect::<Result<_, _>>()? })
    }

    /// Parses float32 weights that lie in memory.
    ///
    /// # Errors
    /// Not safetensors, a tensor that is not float32, or as [`Network::from_weights`].
    pub fn from_bytes(bytes: &[u8], source: &str, device: Device) -> Result<Self, DigitsError> {
        let file =
            SafeTensors::deserialize(bytes).map_err(|error| DigitsError::Weights(format!("{source}: {error}")))?;
        let tensor = |(name, view): (&str, TensorView)| {
            if view.dtype() != Dtype::F32 {
                return Err(DigitsError::Weights(format!("{source}: {name} is {:?}, expected F32", view.dtype())));
            }
            let values: Vec<f32> = view.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            let shape: Vec<i64> = view.shape().iter().map(|size| *size as i64).collect();
            Ok((name.to_owned(), Tensor::f_from_slice(&values)?.f_view(shape.as_slice())?.f_to_device(device)?))
        };
        let weights = file.iter().map(tensor).collect::<Result<Weights, _>>()?;
        Self::from_weights(&weights, source)
    }

    /// The parameters by name, sharing storage.
    pub fn weights(&self) -> Weights {
        let named = PARAMETERS.iter().zip(&self.parameters);
        named.map(|((name, _), tensor)| ((*name).to_owned(), tensor.shallow_clone())).collect()
    }

    /// A copy that shares no memory, without gradients.
    pub fn copy(&self) -> Result<Self, DigitsError> {
        let parameters = self.parameters.iter().map(|tensor| Ok(tensor.f_detach_copy()?));
        Ok(Self { parameters: parameters.collect::<Result<_, DigitsError>>()? })
    }

    /// Where the parameters are.
    pub fn device(&self) -> Device {
        self.parameters.first().map_or(Device::Cpu, Tensor::device)
    }

    /// Reads ink `[N, 1, 8, 8]` in 0..1 (the brightest channel of each pixel).
    pub fn forward(&self, ink: &Tensor) -> Result<Output, DigitsError> {
        let [w1, b1, w2, b2, w3, b3, w4, b4, w5, b5] = self.parameters.as_slice() else {
            return Err(DigitsError::Weights(format!("{} parameters", self.parameters.len())));
        };
        let conv = |x: &Tensor, weight, bias| x.f_conv2d(weight, Some(bias), [1, 1], [1, 1], [1, 1], 1)?.f_relu();
        let side = GLYPH_SIDE as i64;
        let x = conv(&ink.f_view([-1, 1, side, side])?, w1, b1)?;
        let x = conv(&x, w2, b2)?.f_max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], false)?;
        let x = conv(&x, w3, b3)?.f_flatten(1, 3)?;
        let features = x.f_linear(w4, Some(b4))?.f_relu()?;
        let logits = features.f_linear(w5, Some(b5))?;
        Ok(Output { logits, features })
    }
}

/// Whether no number is NaN or infinite.
pub(crate) fn all_finite(tensor: &Tensor) -> Result<bool, DigitsError> {
    Ok(tensor.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0)
}
