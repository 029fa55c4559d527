//! Tensors as they cross the plugin edge.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Where tensors lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// Main memory.
    #[default]
    Cpu,
    /// The CUDA device of that index.
    Cuda(usize),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => write!(f, "cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// Element type. The discriminants cross the plugin edge and never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum DType {
    /// 32-bit float.
    #[default]
    F32 = 0,
    /// 64-bit float.
    F64 = 1,
    /// IEEE half.
    F16 = 2,
    /// bfloat16.
    Bf16 = 3,
    /// 64-bit integer.
    I64 = 4,
    /// Unsigned byte.
    U8 = 5,
    /// Boolean.
    Bool = 6,
}

impl DType {
    /// All types, at the index of their code.
    const ALL: [Self; 7] = [Self::F32, Self::F64, Self::F16, Self::Bf16, Self::I64, Self::U8, Self::Bool];

    /// The type with the code that crossed the edge.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// Size of one element in bytes.
    pub const fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::U8 | Self::Bool => 1,
        }
    }
}

/// A tensor lent for the length of a call: its numbers on the CPU, or (feature `torch`) libtorch's own tensor.
#[derive(Debug)]
pub struct TensorView<'a> {
    dtype: DType,
    shape: Cow<'a, [i64]>,
    strides: Cow<'a, [i64]>,
    data: Data<'a>,
}

#[derive(Debug)]
enum Data<'a> {
    Bytes(&'a [u8]),
    #[cfg(feature = "torch")]
    Torch(tch::Tensor),
}

impl<'a> TensorView<'a> {
    /// A dense float32 tensor over `values`, row-major: what a test without libtorch passes to a reward.
    ///
    /// # Errors
    /// A shape whose number of elements is not `values.len()`.
    pub fn from_f32(values: &'a [f32], shape: &[i64]) -> Result<Self> {
        if shape.iter().any(|&n| n < 0) || shape.iter().product::<i64>() != values.len() as i64 {
            return Err(Error::invalid(format!("shape {shape:?} does not hold {} values", values.len())));
        }
        Ok(Self {
            dtype: DType::F32,
            shape: Cow::Owned(shape.to_vec()),
            strides: Cow::Owned(dense_strides(shape)),
            data: Data::Bytes(bytemuck::cast_slice(values)),
        })
    }

    /// A strided tensor over raw bytes that start at its first element.
    ///
    /// # Errors
    /// Shape and strides of different ranks, negative ones, or an element that lies outside `bytes`.
    pub fn from_bytes(dtype: DType, shape: &'a [i64], strides: &'a [i64], bytes: &'a [u8]) -> Result<Self> {
        let view = Self { dtype, shape: shape.into(), strides: strides.into(), data: Data::Bytes(bytes) };
        let negative = shape.iter().chain(strides).any(|&n| n < 0);
        if negative || shape.len() != strides.len() || view.extent() * dtype.size() > bytes.len() {
            let length = bytes.len();
            return Err(Error::invalid(format!("shape {shape:?}, strides {strides:?} exceed {length} bytes")));
        }
        Ok(view)
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Size of each dimension.
    pub fn shape(&self) -> &[i64] {
        &self.shape
    }

    /// Elements to step over for the next index of each dimension.
    pub fn strides(&self) -> &[i64] {
        &self.strides
    }

    /// Checks the shape against `expected`, where `None` takes any size.
    ///
    /// # Errors
    /// Names `what` and both shapes.
    pub fn expect_shape(&self, what: &str, expected: &[Option<i64>]) -> Result<()> {
        let fits = self.shape.len() == expected.len()
            && self.shape.iter().zip(expected).all(|(found, want)| want.is_none_or(|want| want == *found));
        if fits {
            return Ok(());
        }
        let words: Vec<_> = expected.iter().map(|n| n.map_or("*".to_owned(), |n| n.to_string())).collect();
        Err(Error::shape(what, format!("[{}]", words.join(", ")), &self.shape))
    }

    /// The numbers as float32 in row-major order; borrowed when the tensor already is that.
    ///
    /// # Errors
    /// A tensor that is not on the CPU, or not of floats.
    pub fn to_f32(&self) -> Result<Cow<'_, [f32]>> {
        match &self.data {
            Data::Bytes(bytes) => self.bytes_to_f32(bytes),
            #[cfg(feature = "torch")]
            Data::Torch(tensor) => {
                let flat = tensor.f_to_dtype(tch::Kind::Float, false, false)?.f_reshape(-1)?;
                Ok(Cow::Owned(Vec::<f32>::try_from(flat)?))
            }
        }
    }

    fn bytes_to_f32<'b>(&self, bytes: &'b [u8]) -> Result<Cow<'b, [f32]>> {
        let dense = *self.strides == *dense_strides(&self.shape);
        let used = bytes.get(..self.extent() * self.dtype.size()).unwrap_or(bytes);
        if dense
            && self.dtype == DType::F32
            && let Ok(values) = bytemuck::try_cast_slice(used)
        {
            return Ok(Cow::Borrowed(values));
        }
        let read: fn(&[u8]) -> f32 = match self.dtype {
            DType::F32 => |b| bytemuck::pod_read_unaligned(b),
            DType::F64 => |b| bytemuck::pod_read_unaligned::<f64>(b) as f32,
            DType::F16 => |b| f16_to_f32(bytemuck::pod_read_unaligned(b)),
            DType::Bf16 => |b| f32::from_bits(u32::from(bytemuck::pod_read_unaligned::<u16>(b)) << 16),
            other => return Err(Error::invalid(format!("expected a tensor of floats, found {other:?}"))),
        };
        let size = self.dtype.size();
        let count = self.shape.iter().product::<i64>() as usize;
        let values = (0..count).map(|flat| {
            let at = self.offset(flat) * size;
            read(&bytes[at..at + size])
        });
        Ok(Cow::Owned(values.collect()))
    }

    /// Position, in elements, of the `flat`-th element in row-major order.
    fn offset(&self, flat: usize) -> usize {
        let mut rest = flat as i64;
        let mut at = 0;
        for (&n, &stride) in self.shape.iter().zip(self.strides.iter()).rev() {
            at += rest % n * stride;
            rest /= n;
        }
        at as usize
    }

    /// The plain numbers, if this view holds those.
    #[cfg(feature = "loader")]
    #[cfg_attr(not(feature = "torch"), allow(clippy::unnecessary_wraps, reason = "tensors of libtorch hold none"))]
    pub(crate) fn as_bytes(&self) -> Option<&[u8]> {
        match &self.data {
            Data::Bytes(bytes) => Some(bytes),
            #[cfg(feature = "torch")]
            Data::Torch(_) => None,
        }
    }

    /// Elements from the first to the last, inclusive.
    pub(crate) fn extent(&self) -> usize {
        if self.shape.contains(&0) {
            return 0;
        }
        let last: i64 = self.shape.iter().zip(self.strides.iter()).map(|(n, stride)| (n - 1) * stride).sum();
        last as usize + 1
    }
}

/// The number that the bits of an IEEE half stand for.
fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff) << 13;
    // Exponent and fraction are now where float32 has them. Its exponent counts from -127 and the half's from -15.
    let value = if bits & 0x7c00 == 0x7c00 {
        f32::from_bits(magnitude | 0x7f80_0000)
    } else {
        f32::from_bits(magnitude) * 2f32.powi(127 - 15)
    };
    f32::from_bits(value.to_bits() | sign)
}

fn dense_strides(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i].max(1);
    }
    strides
}

#[cfg(feature = "torch")]
mod torch {
    use super::{Cow, DType, Data, Device, Error, Result, TensorView};

    impl From<Device> for tch::Device {
        fn from(device: Device) -> Self {
            match device {
                Device::Cpu => Self::Cpu,
                Device::Cuda(index) => Self::Cuda(index),
            }
        }
    }

    impl From<DType> for tch::Kind {
        fn from(dtype: DType) -> Self {
            match dtype {
                DType::F32 => Self::Float,
                DType::F64 => Self::Double,
                DType::F16 => Self::Half,
                DType::Bf16 => Self::BFloat16,
                DType::I64 => Self::Int64,
                DType::U8 => Self::Uint8,
                DType::Bool => Self::Bool,
            }
        }
    }

    impl TryFrom<tch::Kind> for DType {
        type Error = Error;

        fn try_from(kind: tch::Kind) -> Result<Self> {
            Self::ALL
                .into_iter()
                .find(|&dtype| tch::Kind::from(dtype) == kind)
                .ok_or_else(|| Error::invalid(format!("tensors of {kind:?} do not cross the plugin edge")))
        }
    }

    impl TensorView<'static> {
        /// A view that shares storage and autograd graph with `tensor`.
        ///
        /// # Errors
        /// An element type that does not cross the edge (complex, quantised).
        pub fn from_torch(tensor: &tch::Tensor) -> Result<Self> {
            Ok(Self {
                dtype: tensor.f_kind()?.try_into()?,
                shape: Cow::Owned(tensor.size()),
                strides: Cow::Owned(tensor.stride()),
                data: Data::Torch(tensor.shallow_clone()),
            })
        }
    }

    impl TensorView<'_> {
        /// libtorch's tensor: the very one (storage and autograd graph), or a copy of plain numbers.
        ///
        /// # Errors
        /// Plain numbers that are not floats.
        pub fn torch(&self) -> Result<tch::Tensor> {
            match &self.data {
                Data::Torch(tensor) => Ok(tensor.shallow_clone()),
                Data::Bytes(_) => {
                    let values = self.to_f32()?;
                    Ok(tch::Tensor::f_from_slice(&values)?.f_reshape(&*self.shape)?)
                }
            }
        }

        /// libtorch's tensor, if this view holds one.
        #[cfg(feature = "loader")]
        pub(crate) fn as_torch(&self) -> Option<&tch::Tensor> {
            match &self.data {
                Data::Torch(tensor) => Some(tensor),
                Data::Bytes(_) => None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    #[test]
    fn every_16_bit_number_is_read_as_the_crate_half_reads_it() {
        let numbers: Vec<u16> = (0..=u16::MAX).collect();
        let read = |dtype| {
            let view = TensorView::from_bytes(dtype, &[65536], &[1], bytemuck::cast_slice(&numbers)).unwrap();
            view.to_f32().unwrap().into_owned()
        };
        let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
        for ((bits, half), brain) in (0..=u16::MAX).zip(read(DType::F16)).zip(read(DType::Bf16)) {
            assert!(same(half, f16::from_bits(bits).to_f32()), "f16 {bits:#x}: {half}");
            assert!(same(brain, bf16::from_bits(bits).to_f32()), "bf16 {bits:#x}: {brain}");
        }
    }

    #[test]
    fn strided_half_reads_in_row_major_order() {
        let values: Vec<f16> = (0..6).map(|i| f16::from_f32(i as f32)).collect();
        let view = TensorView::from_bytes(DType::F16, &[3, 2], &[1, 3], bytemuck::cast_slice(&values)).unwrap();
        assert_eq!(view.to_f32().unwrap().as_ref(), &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    }

    #[test]
    fn dense_f32_is_borrowed() {
        let values = [1.0, 2.0, 3.0, 4.0];
        let view = TensorView::from_f32(&values, &[2, 2]).unwrap();
        assert!(matches!(view.to_f32().unwrap(), Cow::Borrowed(_)));
    }

    #[test]
    fn a_view_beyond_its_bytes_is_refused() {
        assert!(TensorView::from_bytes(DType::F32, &[2, 3], &[3, 1], &[0; 20]).is_err());
        assert!(TensorView::from_f32(&[0.0; 5], &[2, 3]).is_err());
        assert!(TensorView::from_bytes(DType::F32, &[0, 3], &[3, 1], &[]).is_ok());
    }
}
