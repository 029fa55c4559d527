//! The two sides of the adversarial game, as functions of logits.

use advdmd_sdk::Result;
use schemars::JsonSchema;
use serde::Deserialize;
use tch::Tensor;

/// Loss of the discriminator and of the student. Both take logits of any shape and give as many numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Non-saturating: `-ln sigmoid`, written as a softplus so that it cannot overflow (Goodfellow et al. 2014; the paper's
    /// equations 3.7 and 3.8; DMD2).
    Softplus,
    /// Hinge (Lim and Ye 2017, arXiv:1705.02894): the discriminator rests where it is right by a margin.
    Hinge,
}

impl Loss {
    /// What the discriminator pays on real samples: `softplus(-l)` or `relu(1 - l)`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn real(self, logits: &Tensor) -> Result<Tensor> {
        self.fake(&logits.f_neg()?)
    }

    /// What the discriminator pays on fake samples: `softplus(l)` or `relu(1 + l)`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn fake(self, logits: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Softplus => logits.f_softplus()?,
            Self::Hinge => logits.f_add_scalar(1.0)?.f_relu()?,
        })
    }

    /// What the student pays: `softplus(-l)` or `-l`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn generator(self, logits: &Tensor) -> Result<Tensor> {
        let negative = logits.f_neg()?;
        match self {
            Self::Softplus => Ok(negative.f_softplus()?),
            Self::Hinge => Ok(negative),
        }
    }
}
