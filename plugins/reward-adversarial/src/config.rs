//! The configuration table of the reward.

use advdmd_sdk::{Error, FeatureSource, Result, Reward, RewardConfig, RewardInit};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{AdversarialReward, Loss};

/// A discriminator on features of the diffusion model, trained beside the student; scores every step in (0, 1).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Adversarial {
    /// Transformer blocks to read, rising from 0, one head each; by default those at a quarter, half, three quarters and
    /// the end of the network.
    pub taps: Option<Vec<usize>>,
    /// Network whose features are read: `fake` (the paper's, DMD2's) or `teacher` (`FastGen`'s; they never move).
    pub feature_source: FeatureSource,
    /// Channels inside a head; by default half of the features'.
    pub width: Option<i64>,
    /// Loss of the discriminator and, against it, of the student.
    pub loss: Loss,
    /// Whether the heads know the noise level. Without it, one threshold has to serve near-noise, where real and fake look
    /// alike, and near-data, where they do not.
    pub sigma_conditioning: bool,
    /// Weight of the R1 gradient penalty on real features; 0 for none.
    pub r1_weight: f64,
}

impl Default for Adversarial {
    fn default() -> Self {
        Self {
            taps: None,
            feature_source: FeatureSource::Fake,
            width: None,
            loss: Loss::Softplus,
            sigma_conditioning: true,
            r1_weight: 0.0,
        }
    }
}

/// The last blocks of the four quarters of a network: 5, 11, 17, 23 of 24.
fn quarters(depth: usize) -> Vec<usize> {
    let mut taps: Vec<_> = (1..=4).map(|quarter| (depth * quarter / 4).saturating_sub(1)).collect();
    // Networks of fewer than four blocks.
    taps.dedup();
    taps
}

impl Adversarial {
    /// The blocks to read in a network of `depth` blocks.
    ///
    /// # Errors
    /// None at all, or indices that do not rise or lie beyond the network.
    pub(crate) fn taps(&self, depth: usize) -> Result<Vec<usize>> {
        let Some(taps) = &self.taps else { return Ok(quarters(depth)) };
        let rising = taps.windows(2).all(|pair| pair[0] < pair[1]);
        if taps.is_empty() || !rising || taps.last().is_some_and(|&last| last >= depth) {
            return Err(Error::config(format!("taps: expected rising block indices below {depth}, found {taps:?}")));
        }
        Ok(taps.clone())
    }
}

impl RewardConfig for Adversarial {
    fn build(self, init: &RewardInit) -> Result<Box<dyn Reward>> {
        Ok(Box::new(AdversarialReward::new(&self, init)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_taps_are_at_the_quarters() {
        assert_eq!(quarters(24), [5, 11, 17, 23]);
        assert_eq!(quarters(60), [14, 29, 44, 59]);
        assert_eq!(quarters(4), [0, 1, 2, 3]);
        assert_eq!(quarters(2), [0, 1]);
        assert_eq!(quarters(1), [0]);
    }

    #[test]
    fn taps_beyond_the_network_or_out_of_order_are_refused() {
        let taps = |taps: &[usize]| Adversarial { taps: Some(taps.to_vec()), ..Adversarial::default() }.taps(4);
        assert_eq!(taps(&[1, 3]).unwrap(), [1, 3]);
        for bad in [&[][..], &[4], &[2, 1], &[1, 1]] {
            let message = taps(bad).unwrap_err().to_string();
            assert_eq!(message, format!("taps: expected rising block indices below 4, found {bad:?}"));
        }
    }
}
