//! `advdmd replay`: an update that was not finite, once more, tensor by tensor.

use std::path::PathBuf;

use advdmd::train::{self, Seen};
use advdmd::{Error, Result};
use clap::Args;
use serde_json::json;

use super::compute_args::ComputeArgs;
use super::output;

/// The options of `advdmd replay`.
#[derive(Debug, Args)]
pub struct Replay {
    /// The kept update, such as `runs/x/failures/update-000123`
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints every tensor up to the first that is not finite; an update that goes through is a failure of the replay.
pub fn run(args: &Replay) -> Result<()> {
    if !args.folder.join("index.json").exists() {
        let hint =
            "give a folder of `RUN/failures`, which a run writes when a loss or gradient is not finite".to_owned();
        return Err(Error::usage(format!("{} holds no kept update", args.folder.display()), hint));
    }
    let inspection = train::replay(&args.folder, &args.compute.sets())?;
    let finding = inspection.first_bad();
    if args.json {
        let row =
            |seen: &Seen| json!({"place": seen.place, "name": seen.name, "shape": seen.shape, "largest": seen.largest});
        let tensors: Vec<_> = inspection.seen().iter().map(row).collect();
        let first_bad = finding.map(|finding| json!({"text": finding.to_string(), "index": finding.index}));
        output::json(&json!({"tensors": tensors, "first_bad": first_bad}))?;
    } else {
        output::text(&table(inspection.seen()))?;
    }
    match finding {
        Some(finding) => {
            tracing::info!("first tensor at fault: {finding}");
            Ok(())
        }
        None => Err(Error::failed(format!(
            "all {} tensors of the update are finite this time: device, libtorch or a plugin may differ",
            inspection.seen().len()
        ))),
    }
}

/// One line a tensor, under the place where it was made.
fn table(seen: &[Seen]) -> String {
    let width = seen.iter().map(|seen| seen.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    let mut place = "";
    for tensor in seen {
        if tensor.place != place {
            place = &tensor.place;
            text += &format!("{place}\n");
        }
        let shape = format!("{:?}", tensor.shape);
        text += &format!("  {:width$}  {shape:20}  largest {:.3e}\n", tensor.name, tensor.largest);
    }
    text.trim_end().to_owned()
}
