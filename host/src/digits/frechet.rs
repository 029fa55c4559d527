//! The Fréchet distance between two sets of features, taken as Gaussians.

use tch::{Device, Kind, Tensor, no_grad};

use super::error::DigitsError;
use super::network::all_finite;

/// Mean and covariance of a set of features, in double precision on the CPU.
#[derive(Debug)]
pub struct FeatureStatistics {
    mean: Tensor,
    covariance: Tensor,
}

impl FeatureStatistics {
    /// Of features `[N, D]`, any float kind, any device; the covariance is the unbiased one (divided by N - 1). With
    /// N below D + 1 it is singular, and the distance is biased upwards: compare only sets of the same size.
    ///
    /// # Errors
    /// Not two dimensions; fewer than two rows, no column; NaN or infinity.
    pub fn new(features: &Tensor) -> Result<Self, DigitsError> {
        no_grad(|| {
            let problem = |problem| Err(DigitsError::Tensor { name: "features", problem });
            let rows = match features.size().as_slice() {
                [rows, columns] if *rows >= 2 && *columns >= 1 => *rows,
                other => {
                    return problem(format!("have shape {other:?}, expected [N, D] with N from 2 up, D from 1 up"));
                }
            };
            let features = features.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?;
            if !all_finite(&features)? {
                return problem("hold NaN or infinity".into());
            }
            let mean = features.f_mean_dim([0i64].as_slice(), false, Kind::Double)?;
            let centred = features.f_sub(&mean)?;
            let covariance = centred.f_tr()?.f_matmul(&centred)?.f_div_scalar((rows - 1) as f64)?;
            Ok(Self { mean, covariance })
        })
    }

    /// Of a Gaussian with this mean `[D]` and this covariance `[D, D]`, of which the symmetric part is used.
    ///
    /// # Errors
    /// Other shapes; NaN or infinity.
    pub fn of_gaussian(mean: &Tensor, covariance: &Tensor) -> Result<Self, DigitsError> {
        let (shape, expected) = (covariance.size(), mean.size());
        if expected.len() != 1 || expected[0] == 0 || shape != [expected[0], expected[0]] {
            let problem = format!("has shape {shape:?} beside a mean of shape {expected:?}, expected [D, D] and [D]");
            return Err(DigitsError::Tensor { name: "covariance", problem });
        }
        let double = |tensor: &Tensor| tensor.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double);
        let (mean, covariance) = (double(mean)?, double(covariance)?);
        let covariance = covariance.f_add(&covariance.f_tr()?)?.f_div_scalar(2.0)?;
        for (name, tensor) in [("mean", &mean), ("covariance", &covariance)] {
            if !all_finite(tensor)? {
                return Err(DigitsError::Tensor { name, problem: "holds NaN or infinity".into() });
            }
        }
        Ok(Self { mean, covariance })
    }

    /// The Fréchet distance `|m1 - m2|^2 + tr(S1 + S2 - 2 (S1^.5 S2 S1^.5)^.5)` (Dowson and Landau 1982; FID,
    /// arXiv:1706.08500). The product under the root is symmetric, so both roots come from eigenvalues and
    /// no complex number arises. From 0 up, in the squared units of the features.
    ///
    /// # Errors
    /// Different numbers of dimensions; the eigenvalues cannot be found.
    pub fn frechet_distance(&self, other: &Self) -> Result<f64, DigitsError> {
        if self.mean.size() != other.mean.size() {
            let problem = format!("have {:?} dimensions and {:?}", self.mean.size(), other.mean.size());
            return Err(DigitsError::Tensor { name: "features", problem });
        }
        no_grad(|| {
            let means = self.mean.f_sub(&other.mean)?.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?;
            let trace = |matrix: &Tensor| matrix.f_trace()?.f_double_value(&[]);
            let (values, vectors) = self.covariance.f_linalg_eigh("L")?;
            let root = vectors.f_mul(&values.f_clamp_min(0.0)?.f_sqrt()?)?.f_matmul(&vectors.f_tr()?)?;
            let product = root.f_matmul(&other.covariance)?.f_matmul(&root)?;
            let product = product.f_add(&product.f_tr()?)?.f_div_scalar(2.0)?;
            let (values, _) = product.f_linalg_eigh("L")?;
            let cross = values.f_clamp_min(0.0)?.f_sqrt()?.f_sum(Kind::Double)?.f_double_value(&[])?;
            // Rounding can leave equal sets a hair below zero.
            Ok((means + trace(&self.covariance)? + trace(&other.covariance)? - 2.0 * cross).max(0.0))
        })
    }
}

/// The Fréchet distance between features `[N, D]` and `[M, D]`.
///
/// # Errors
/// As [`FeatureStatistics::new`] and [`FeatureStatistics::frechet_distance`].
pub fn frechet_distance(a: &Tensor, b: &Tensor) -> Result<f64, DigitsError> {
    FeatureStatistics::new(a)?.frechet_distance(&FeatureStatistics::new(b)?)
}
