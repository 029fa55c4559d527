//! `advdmd check`: whether a component keeps its contract, and a backbone agrees with a reference.

mod conformance;
mod parity;

use std::path::PathBuf;

use advdmd::{Error, Result, containment};
use advdmd_sdk::Kind;
use clap::{Args, Subcommand};

use super::compute_args::ComputeArgs;
use super::model_args::BackboneArgs;

/// What to check.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the conformance checks on a reward: `advdmd check reward 'type=colorfulness,scale=2.0'`
    Reward(CheckComponent),
    /// Run the conformance checks on a sampler: `advdmd check sampler type=sde-cps`
    Sampler(CheckComponent),
    /// Run the conformance checks on a backbone; with --golden compute the tensors of a reference again, and compare
    Backbone(CheckBackbone),
}

/// The options of `advdmd check reward` and `sampler`.
#[derive(Debug, Args)]
pub struct CheckComponent {
    /// The component and its keys, as in `advdmd score --reward`: type=NAME,KEY=VALUE,..
    #[arg(value_name = "KEY=VALUE,..")]
    component: String,
    #[command(flatten)]
    report: ReportArgs,
}

/// Where components are found, and where the report goes.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Look for plugins in this folder or file too; may be repeated
    #[arg(long = "plugin-path", value_name = "PATH")]
    plugin_paths: Vec<PathBuf>,
    /// Write the report as JSON; `-` prints it instead of the lines
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The options of `advdmd check backbone`.
#[derive(Debug, Args)]
pub struct CheckBackbone {
    /// The backbone and its keys: type=NAME,KEY=VALUE,..; or --backbone with --model and --backbone-set
    #[arg(value_name = "KEY=VALUE,..", conflicts_with = "backbone", required_unless_present = "backbone")]
    component: Option<String>,
    #[command(flatten)]
    backbone: BackboneArgs,
    /// Instead of the conformance checks: a reference's tensors: `noise`, `prompt_embeds`, `velocity_0`, …
    #[arg(long, value_name = "G.safetensors")]
    golden: Option<PathBuf>,
    /// The prompts of `prompt_embeds`: a JSON list of strings, or one a line
    #[arg(long, value_name = "FILE", requires = "golden")]
    prompts: Option<PathBuf>,
    /// The largest absolute difference that passes
    #[arg(long, value_name = "X", default_value_t = 1e-4, requires = "golden")]
    tolerance: f64,
    #[command(flatten)]
    report: ReportArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// Says that this process is the one that may be ended by the plugin.
const CHILD: &str = "ADVDMD_CHECK_CHILD";

pub fn run(command: &Command) -> Result<()> {
    let compares = matches!(command, Command::Backbone(args) if args.golden.is_some());
    if !compares && std::env::var_os(CHILD).is_none() {
        return apart();
    }
    match command {
        Command::Reward(args) => conformance::of_text(Kind::Reward, &args.component, &args.report),
        Command::Sampler(args) => conformance::of_text(Kind::Sampler, &args.component, &args.report),
        Command::Backbone(args) => match (&args.golden, &args.component) {
            (Some(golden), None) => parity::run(args, golden),
            (Some(_), Some(_)) => {
                let hint = "`advdmd check backbone --backbone TYPE --model DIR --golden FILE`".to_owned();
                Err(Error::usage("--golden takes the backbone by --backbone", hint))
            }
            (None, _) if !args.compute.sets().is_empty() => {
                let hint = "leave them out: the conformance checks run on the CPU in float32".to_owned();
                Err(Error::usage("--device, --dtype and --threads go with --golden", hint))
            }
            (None, Some(text)) => conformance::of_text(Kind::Backbone, text, &args.report),
            (None, None) => conformance::of_backbone(&args.backbone, &args.report),
        },
    }
}

/// Runs this very command in a process of its own: a plugin that is to be checked may end it.
fn apart() -> Result<()> {
    let fail = |error| Error::failed(format!("the checks cannot be started: {error}"));
    let mut check = std::process::Command::new("/proc/self/exe");
    let status = check.args(std::env::args_os().skip(1)).env(CHILD, "1").status().map_err(fail)?;
    match status.code() {
        Some(0) => Ok(()),
        // It has said why.
        Some(code) => std::process::exit(code),
        None => {
            let message = format!("the plugin brought the checks down: the process {}", containment::describe(status));
            Err(Error::failed(format!("{message}; `-v` names each check before it runs")))
        }
    }
}
