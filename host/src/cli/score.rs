//! `advdmd score`: rewards of images in files.

use std::path::{Path, PathBuf};

use advdmd::config::Compute;
use advdmd::registry::Registry;
use advdmd::score::images::{self, Item};
use advdmd::score::{Checked, Chosen, Comparison, Golden, Options, Ready, Scores, distinct, score};
use advdmd::{Error, Result, device, prompt_file};
use advdmd_sdk::DType;
use clap::Args;

use super::compute_args::device_name;
use super::output;

/// The options of `advdmd score`.
#[derive(Debug, Args)]
pub struct Score {
    /// A reward and its keys, such as 'type=hps,model=DIR'; may be repeated; `name` is its label. Quotes,
    /// lists and tables as in TOML: `type=remote,endpoints=["http://127.0.0.1:8000/score"]`
    #[arg(long = "reward", value_name = "KEY=VALUE,..", required_unless_present = "config")]
    rewards: Vec<String>,
    /// Take the [[reward]] tables of this file too, and its [plugins] paths; the configuration of a run will do
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    /// Look for plugins in this folder or file too
    #[arg(long = "plugin-path", value_name = "PATH")]
    plugin_paths: Vec<PathBuf>,
    /// Folders of images, in natural order of their names, or single files: PNG, JPEG, `WebP`, GIF
    ///
    /// Their pixels are what Pillow's `ImageOps.exif_transpose(Image.open(FILE)).convert("RGB")` gives, so that scores are
    /// those of the rewards' reference pipelines: transparency is dropped, a GIF counts by its first frame, of 16 bits the
    /// upper 8 are taken (of grey too, which Pillow clips to white).
    #[arg(long, value_name = "PATH", num_args = 1.., required = true)]
    images: Vec<PathBuf>,
    /// Their prompts: a JSON list or one a line, in the order of the images; a JSON object {file name: prompt}; or a
    /// metadata.jsonl with `file_name` and `text`
    #[arg(long, value_name = "FILE", required_unless_present = "prompt", conflicts_with = "prompt")]
    prompts: Option<PathBuf>,
    /// One prompt for all images
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Images of a call, of one size
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = super::at_least_one)]
    batch: usize,
    /// Name, count and leave out images that cannot be read, instead of stopping
    #[arg(long)]
    skip_broken: bool,
    /// Write everything as JSON; `-` prints it instead of the tables
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Compare with stored scores: {"scores": {REWARD: [..]}} in the order of the images, or what --json wrote, whose images
    /// are found by their files. A reward that has no stored scores is an error
    #[arg(long, value_name = "FILE.json")]
    golden: Option<PathBuf>,
    /// The largest difference from them that passes [default: that of the file, else 1e-4]
    #[arg(long, value_name = "X", requires = "golden")]
    tolerance: Option<f64>,
    /// `cpu`, `cuda` or `cuda:N`
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = device_name)]
    device: String,
    /// CPU threads, 0 for all cores
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
}

/// More images than this have no lines of their own.
const FEW: usize = 20;

pub fn run(args: &Score) -> Result<()> {
    if let Some(tolerance) = args.tolerance.filter(|tolerance| !(tolerance.is_finite() && *tolerance >= 0.0)) {
        return Err(Error::usage(format!("--tolerance {tolerance}: expected a number of at least 0"), None));
    }
    refuse_overwriting(args)?;
    let mut chosen = args.rewards.iter().map(|text| Chosen::parse(text)).collect::<Result<Vec<_>>>()?;
    let mut places = args.plugin_paths.clone();
    if let Some(path) = &args.config {
        let (more, paths) = Chosen::of_file(path)?;
        chosen.extend(more);
        places.extend(paths);
    }
    distinct(&chosen)?;
    let golden = args.golden.as_deref().map(Golden::read).transpose()?;
    let items = items(args)?;
    let registry = Registry::discover(&places)?;
    let compute = Compute { device: args.device.clone(), dtype: DType::F32, threads: args.threads };
    let device = device::select(&compute)?;
    let make = |reward: Chosen| reward.make(&registry, device::sdk(device));
    let mut rewards = chosen.into_iter().map(make).collect::<Result<Vec<Ready>>>()?;
    let options = Options { batch: args.batch, device, skip_broken: args.skip_broken };
    let scores = score(&items, &mut rewards, &options)?;
    for skipped in &scores.skipped {
        tracing::warn!("left out {}: {}", skipped.file.display(), skipped.why);
    }
    let printed = args.json.as_deref() == Some(Path::new("-"));
    match &args.json {
        Some(_) if printed => output::json(&scores)?,
        Some(path) => scores.write(path)?,
        None => {}
    }
    if !printed {
        output::text(&tables(&scores))?;
    }
    golden.map_or(Ok(()), |golden| judge(&golden, &scores, args.tolerance, printed))
}

/// Refuses to write the scores over those that they are compared with.
fn refuse_overwriting(args: &Score) -> Result<()> {
    let (Some(golden), Some(json)) = (&args.golden, args.json.as_ref().filter(|path| path.as_path() != Path::new("-")))
    else {
        return Ok(());
    };
    // A file that is not there yet is not the other one.
    match (golden.canonicalize(), json.canonicalize()) {
        (Ok(stored), Ok(written)) if stored == written => {
            let message = format!("--json {} would overwrite --golden {}", json.display(), golden.display());
            Err(Error::usage(message, "name another file for the new scores".to_owned()))
        }
        _ => Ok(()),
    }
}

/// The images and their prompts.
fn items(args: &Score) -> Result<Vec<Item>> {
    let images = images::list(&args.images)?;
    match (&args.prompts, &args.prompt) {
        (Some(path), _) => images::with_prompts(images, prompt_file::read_assigned(path)?, path),
        (None, prompt) => {
            let prompt = prompt.clone().unwrap_or_default();
            Ok(images.into_iter().map(|path| Item { path, prompt: prompt.clone() }).collect())
        }
    }
}

/// Each image if there are few, and each reward.
fn tables(scores: &Scores) -> String {
    let mut text = String::new();
    if scores.images.len() <= FEW {
        let names = scores.rewards.iter().map(|reward| reward.name.clone());
        let mut rows =
            vec![["image".to_owned()].into_iter().chain(names).chain(["prompt".to_owned()]).collect::<Vec<_>>()];
        rows.extend(scores.images.iter().map(|image| {
            let own = scores.rewards.iter().filter_map(|reward| image.scores.get(&reward.name));
            let own = own.map(|score| format!("{score:.5}"));
            [image.file.display().to_string()].into_iter().chain(own).chain([shortened(&image.prompt)]).collect()
        }));
        text = output::columns(&rows) + "\n\n";
    }
    let mut rows = vec![["reward", "images", "mean", "std", "min", "max"].map(str::to_owned).to_vec()];
    rows.extend(scores.rewards.iter().map(|reward| {
        let summary = &reward.summary;
        let mut row = vec![reward.name.clone(), scores.images.len().to_string()];
        row.extend(
            [summary.mean, summary.std, summary.min.into(), summary.max.into()].map(|number| format!("{number:.5}")),
        );
        row
    }));
    text += &output::columns(&rows);
    if !scores.skipped.is_empty() {
        text += &format!("\n{} images were left out", scores.skipped.len());
    }
    text
}

/// Prints the differences; those over the tolerance are an error, and so is a reward that nothing is stored for.
fn judge(golden: &Golden, scores: &Scores, tolerance: Option<f64>, quiet: bool) -> Result<()> {
    let tolerance = golden.tolerance(tolerance);
    let Checked { comparisons, images, unchecked, unknown, missing } = golden.compare(scores)?;
    let holds = |comparison: &&Comparison| comparison.difference <= tolerance;
    let mut rows = vec![["reward", "largest difference", "stored", "found", "image", ""].map(str::to_owned).to_vec()];
    rows.extend(comparisons.iter().map(|comparison| {
        let verdict = if holds(&comparison) { "ok" } else { "DIFFERS" };
        let Comparison { reward, difference, file, expected, found } = comparison;
        let (file, verdict) = (file.display().to_string(), verdict.to_owned());
        vec![
            reward.clone(),
            format!("{difference:.2e}"),
            format!("{expected:.6}"),
            format!("{found:.6}"),
            file,
            verdict,
        ]
    }));
    if !quiet {
        output::text(&format!("\n{}", output::columns(&rows)))?;
    }
    for (files, what) in [(unknown, "scored and have no stored scores"), (missing, "stored and were not scored")] {
        if let Some(first) = files.first() {
            tracing::warn!(
                "{} images are {what}, and were not compared; the first is {}",
                files.len(),
                first.display()
            );
        }
    }
    let lacking = || format!("there are no stored scores of `{}`, which were not compared", unchecked.join("`, `"));
    let over = comparisons.iter().filter(|comparison| !holds(comparison)).count();
    if over > 0 {
        let all = comparisons.len();
        return Err(Error::failed(format!(
            "{over} of {all} rewards differ from the stored scores by more than {tolerance}{}",
            if unchecked.is_empty() { String::new() } else { format!("; {}", lacking()) }
        )));
    }
    if !unchecked.is_empty() {
        return Err(Error::failed(lacking()));
    }
    tracing::info!("{} rewards of {images} images agree with the stored scores within {tolerance}", comparisons.len());
    Ok(())
}

/// The beginning of a prompt, on one line.
fn shortened(prompt: &str) -> String {
    const MOST: usize = 60;
    let mut letters = prompt.chars().map(|letter| if letter.is_control() { ' ' } else { letter });
    let start: String = letters.by_ref().take(MOST).collect();
    if letters.next().is_some() { start + "…" } else { start }
}
