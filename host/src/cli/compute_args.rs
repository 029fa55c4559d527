//! Where and how a command computes.

use advdmd::config::Compute;
use advdmd::{Error, Result, device};
use advdmd_sdk::DType;
use clap::Args;

/// Device and precision: what is given here overrides `[compute]` of a configuration.
#[derive(Debug, Clone, Default, Args)]
pub struct ComputeArgs {
    /// `cpu`, `cuda` or `cuda:N` [default: `compute.device` of the configuration, else `cpu`]
    #[arg(long, value_name = "DEVICE", value_parser = device_name)]
    device: Option<String>,
    /// Compute type of the networks [default: `compute.dtype` of the configuration, else `f32`]
    #[arg(long, value_name = "TYPE", value_parser = ["f32", "bf16", "f16", "f64"])]
    dtype: Option<String>,
    /// CPU threads, 0 for all cores [default: `compute.threads` of the configuration, else 0]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

/// For options that name a device.
pub fn device_name(text: &str) -> Result<String, String> {
    device::parse(text).map(|_| text.to_owned()).ok_or_else(|| format!("expected {}", device::NAMES))
}

impl ComputeArgs {
    /// The same as options of `--set`, for a command with a configuration.
    pub fn sets(&self) -> Vec<String> {
        let threads = self.threads.map(|threads| threads.to_string());
        let given = [("device", &self.device), ("dtype", &self.dtype), ("threads", &threads)];
        given.into_iter().filter_map(|(key, value)| Some(format!("compute.{key}={}", value.as_ref()?))).collect()
    }

    /// The whole of it, for a command without a configuration.
    pub fn compute(&self) -> Result<Compute> {
        let dtype = match &self.dtype {
            Some(name) => serde_json::from_value(name.as_str().into()).map_err(Error::failed)?,
            None => DType::F32,
        };
        let device = self.device.clone().unwrap_or_else(|| "cpu".to_owned());
        Ok(Compute { device, dtype, threads: self.threads.unwrap_or(0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_stand_for_keys_and_for_the_whole() {
        let none = ComputeArgs::default();
        assert_eq!(none.sets(), Vec::<String>::new());
        assert_eq!(none.compute().unwrap(), Compute { device: "cpu".to_owned(), dtype: DType::F32, threads: 0 });
        let all = ComputeArgs { device: Some("cuda:1".into()), dtype: Some("bf16".into()), threads: Some(3) };
        assert_eq!(all.sets(), ["compute.device=cuda:1", "compute.dtype=bf16", "compute.threads=3"]);
        let compute = Compute { device: "cuda:1".to_owned(), dtype: DType::Bf16, threads: 3 };
        assert_eq!(all.compute().unwrap(), compute);
    }
}
