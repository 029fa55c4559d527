//! `advdmd pretrain`.

use std::path::PathBuf;

use advdmd::{Result, pretrain};
use clap::Args;

use super::logging;
use super::run_config::ConfigArgs;

/// The options of `advdmd pretrain`.
#[derive(Debug, Args)]
pub struct Pretrain {
    #[command(flatten)]
    config: ConfigArgs,
    /// The run's folder [default: runs/CONFIG]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on from the last saved step
    #[arg(long)]
    resume: bool,
}

pub fn run(args: &Pretrain) -> Result<()> {
    let out = args.out.clone().unwrap_or_else(|| args.config.default_out());
    logging::record_in(&out);
    let resolved = args.config.load_pretrain()?;
    pretrain::run(resolved, &out, args.resume)
}
