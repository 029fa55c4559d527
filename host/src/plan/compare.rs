//! What was planned beside what the first update showed.

use std::path::Path;

use serde::Serialize;

use super::Plan;
use super::render::bytes;
use crate::train::Values;
use crate::{Result, files};

/// A plan and the first update of its run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// What was planned.
    pub plan: Plan,
    /// The most bytes of tensors in the first update.
    pub peak: Option<u64>,
    /// `planned / measured - 1` of the peak.
    pub peak_error: Option<f64>,
    /// Whether the policy gradient took part, which a plan counts with.
    pub policy_gradient: bool,
    /// Seconds of the first update.
    pub seconds: f64,
    /// `planned / measured - 1` of the time.
    pub seconds_error: f64,
}

impl Plan {
    /// Compares with the numbers and seconds of the first update.
    pub fn compare(self, values: &Values, seconds: f64) -> Comparison {
        let peak = values.get("memory/peak").map(|peak| *peak as u64);
        let planned = self.memory.as_ref().map(|memory| memory.peak as f64);
        let peak_error = planned.zip(peak).map(|(planned, measured)| planned / measured as f64 - 1.0);
        let seconds_error = self.time.update / seconds - 1.0;
        let policy_gradient = values.contains_key("grpo/loss") || !values.keys().any(|name| name.starts_with("grpo/"));
        Comparison { plan: self, peak, peak_error, policy_gradient, seconds, seconds_error }
    }
}

impl Comparison {
    /// Says it, and writes it to `RUN/plan.json`.
    ///
    /// # Errors
    /// The file's.
    pub fn report(&self, run: &Path) -> Result<()> {
        let percent = |error: f64| format!("{:+.1} %", 100.0 * error);
        if let (Some(memory), Some(peak), Some(error)) = (&self.plan.memory, self.peak, self.peak_error) {
            let (planned, measured) = (bytes(memory.peak), bytes(peak));
            let gate = if self.policy_gradient { "" } else { ", the policy gradient still off" };
            tracing::info!(
                "peak of tensors in the first update: {measured}, planned {planned} ({}){gate}",
                percent(error)
            );
        }
        let (planned, error) = (self.plan.time.update, percent(self.seconds_error));
        tracing::info!("the first update took {:.2} s, planned {planned:.2} s ({error})", self.seconds);
        files::write_json(&run.join("plan.json"), self)
    }
}
