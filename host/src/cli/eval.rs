//! `advdmd eval`: a model's scores on a suite.

use std::path::PathBuf;

use advdmd::digits::SCENE_SIDE;
use advdmd::eval::{DigitSuite, Entry, Subject, Table};
use advdmd::{Error, Result, files};
use clap::{Args, ValueEnum};

use super::model_args::ModelArgs;
use super::output;

/// The options of `advdmd eval`.
#[derive(Debug, Args)]
pub struct Eval {
    #[command(flatten)]
    model: ModelArgs,
    /// What to score
    #[arg(long, value_enum)]
    suite: Suite,
    /// Prompts of each task
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = super::at_least_one)]
    prompts_per_task: usize,
    /// Images per forward pass
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = super::at_least_one)]
    batch: usize,
    /// Write the table as JSON as well
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The suites.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Suite {
    /// The digit scenes: six tasks after `GenEval`, and the Fréchet distance
    Digits,
}

/// Seed of the suite's prompts: fixed, so that evaluations compare.
const SUITE_SEED: u64 = 1;

pub fn run(args: &Eval) -> Result<()> {
    let (model, trajectory, ()) = args.model.load(|_| Ok(()))?;
    let (made, side) = (model.backbone.spec().image_shape, SCENE_SIDE as i64);
    if made != [3, side, side] {
        let message = format!("the suite judges images of [3, {side}, {side}], this model makes {made:?}");
        return Err(Error::usage(message, "`advdmd sample` shows what it makes".to_owned()));
    }
    let suite = match args.suite {
        Suite::Digits => DigitSuite::new(args.prompts_per_task, SUITE_SEED, model.device())?,
    };
    let pipeline = model.pipeline(&trajectory, args.model.guidance_scale, args.model.seed);
    let scores = suite.evaluate(args.batch, |prompts, first| pipeline.images(prompts, first))?;
    let student = args.model.run.is_some();
    let table = Table::new(vec![Entry {
        update: model.updates,
        label: if student { "student".to_owned() } else { "base".to_owned() },
        subject: if student { Subject::Student } else { Subject::Teacher },
        sampler: model.sampler_type.clone(),
        steps: trajectory.steps(),
        guidance_scale: args.model.guidance_scale,
        evaluations: pipeline.evaluations(),
        scores,
    }]);
    if let Some(path) = &args.json {
        files::write_json(path, &table)?;
    }
    output::text(&table.to_string())
}
