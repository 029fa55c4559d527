//! Scores of images in files: any reward that reads images and prompts, without a run or a backbone.

mod golden;
pub mod images;
mod rewards;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::thread;

use advdmd_sdk::{RewardBatch, TensorView};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use tch::{Device, Kind, Tensor};

use crate::progress::Progress;
use crate::{Error, Result, interrupt, picture};
pub use golden::{Checked, Comparison, Golden};
use images::{Batch, Item};
pub use rewards::{Chosen, Ready, distinct};

/// Scores of images: what `advdmd score --json` writes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Version of this program.
    pub advdmd: String,
    /// The rewards, in the order in which they were named.
    pub rewards: Vec<Scored>,
    /// The images, in their order.
    pub images: Vec<Image>,
    /// Images that were left out.
    pub skipped: Vec<Skipped>,
}

/// A reward and its scores in numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// Its label.
    pub name: String,
    /// `type` and the plugin's keys.
    pub config: Json,
    /// The plugin's file, or the program.
    pub provider: String,
    /// SHA-256 of the plugin's file; none for the program's own.
    pub sha256: Option<String>,
    /// Over all images.
    pub summary: Summary,
}

/// A reward's scores in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Mean.
    pub mean: f64,
    /// Standard deviation, of these images and not an estimate for others: the sum of squares is divided by their number.
    pub std: f64,
    /// The lowest score.
    pub min: f32,
    /// The highest.
    pub max: f32,
}

/// An image's scores.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// The file.
    pub file: PathBuf,
    /// Its prompt.
    pub prompt: String,
    /// Width and height.
    pub size: [u32; 2],
    /// By reward.
    pub scores: BTreeMap<String, f32>,
}

/// An image that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// The file.
    pub file: PathBuf,
    /// What is wrong with it.
    pub why: String,
}

/// How images are scored.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Images of a call.
    pub batch: usize,
    /// Where rewards compute.
    pub device: Device,
    /// Leave out what cannot be read.
    pub skip_broken: bool,
}

/// Images of one size, read.
struct Loaded {
    size: [u32; 2],
    places: Vec<usize>,
    /// `[B, 3, H, W]`, on the CPU. Bytes, since they wait beside those that are scored.
    pixels: Option<Tensor>,
    broken: Vec<(usize, String)>,
}

/// Scores all images by all rewards. Images of one size share a batch; the next one is read while this one is scored.
///
/// # Errors
/// An image that cannot be read, unless those are left out, and no image that can; a reward that fails, or gives a wrong
/// number of scores or one that is not finite: names image and reward. Ctrl-C.
pub fn score(items: &[Item], rewards: &mut [Ready], options: &Options) -> Result<Scores> {
    let stop = interrupt::flag()?;
    let mut broken: BTreeMap<usize, String> = BTreeMap::new();
    let mut sizes = Vec::new();
    for (place, item) in items.iter().enumerate() {
        let size = picture::size_of_file(&item.path);
        sizes.push(size.map_err(|why| broken.insert(place, why)).ok());
    }
    refuse_broken(items, &broken, options)?;
    let batches = images::batches(&sizes, options.batch);
    let mut scores: Vec<Vec<Option<f32>>> = rewards.iter().map(|_| vec![None; items.len()]).collect();
    let mut progress = Progress::new("scoring", broken.len() as u64, items.len() as u64);
    thread::scope(|scope| -> Result<()> {
        // Without room: one batch waits, not two.
        let (send, receive) = sync_channel(0);
        scope.spawn(move || {
            for batch in batches {
                if stop.is_raised() || send.send(load(items, batch)).is_err() {
                    return;
                }
            }
        });
        let mut done = broken.len();
        for loaded in receive {
            let loaded = loaded?;
            broken.extend(loaded.broken);
            refuse_broken(items, &broken, options)?;
            if let Some(bytes) = loaded.pixels {
                let pixels = picture::in_unit(&bytes)?;
                drop(bytes);
                let batch: Vec<&Item> = loaded.places.iter().map(|place| &items[*place]).collect();
                for (reward, column) in rewards.iter_mut().zip(&mut scores) {
                    if stop.is_raised() {
                        break;
                    }
                    let found = reward.score(&batch, &pixels, options.device)?;
                    loaded.places.iter().zip(found).for_each(|(place, score)| column[*place] = Some(score));
                }
            }
            done = (done + loaded.places.len()).min(items.len());
            progress.advance(done as u64, format_args!("{} x {}", loaded.size[0], loaded.size[1]));
        }
        Ok(())
    })?;
    if stop.is_raised() {
        return Err(Error::failed("stopped before all images were scored; nothing was written"));
    }
    drop(progress);
    collected(items, &sizes, &broken, rewards, &scores)
}

/// Puts scores beside their images.
fn collected(
    items: &[Item],
    sizes: &[Option<[u32; 2]>],
    broken: &BTreeMap<usize, String>,
    rewards: &[Ready],
    scores: &[Vec<Option<f32>>],
) -> Result<Scores> {
    let summary = |column: &[Option<f32>]| Summary::of(&column.iter().copied().flatten().collect::<Vec<_>>());
    let scored = rewards.iter().zip(scores).map(|(reward, column)| {
        let summary = summary(column).ok_or_else(|| Error::failed("there is no image that can be scored"))?;
        Ok(Scored {
            name: reward.name.clone(),
            config: reward.component.to_json(),
            provider: reward.provider.clone(),
            sha256: reward.sha256.clone(),
            summary,
        })
    });
    let images = items.iter().enumerate().filter(|(place, _)| !broken.contains_key(place)).map(|(place, item)| {
        let scores =
            rewards.iter().zip(scores).filter_map(|(reward, column)| Some((reward.name.clone(), column[place]?)));
        let (file, prompt, size) = (item.path.clone(), item.prompt.clone(), sizes[place].unwrap_or_default());
        Image { file, prompt, size, scores: scores.collect() }
    });
    let skipped = broken.iter().map(|(place, why)| Skipped { file: items[*place].path.clone(), why: why.clone() });
    Ok(Scores {
        advdmd: env!("CARGO_PKG_VERSION").to_owned(),
        rewards: scored.collect::<Result<_>>()?,
        images: images.collect(),
        skipped: skipped.collect(),
    })
}

/// Reads the images of a batch.
fn load(items: &[Item], batch: Batch) -> Result<Loaded> {
    let (mut places, mut broken) = (Vec::new(), Vec::new());
    let [width, height] = batch.size.map(i64::from);
    let all = Tensor::f_empty([batch.places.len() as i64, 3, height, width], (Kind::Uint8, Device::Cpu))?;
    for place in batch.places {
        match images::read(&items[place].path, batch.size)? {
            Ok(image) => {
                all.f_select(0, places.len() as i64)?.f_copy_(&image)?;
                places.push(place);
            }
            Err(why) => broken.push((place, why)),
        }
    }
    let pixels = if places.is_empty() { None } else { Some(all.f_narrow(0, 0, places.len() as i64)?) };
    Ok(Loaded { size: batch.size, places, pixels, broken })
}

fn refuse_broken(items: &[Item], broken: &BTreeMap<usize, String>, options: &Options) -> Result<()> {
    let Some((place, why)) = broken.iter().next().filter(|_| !options.skip_broken) else { return Ok(()) };
    let more = if broken.len() == 1 { String::new() } else { format!("; nor can {} others be read", broken.len() - 1) };
    let message = format!("{}: {why}{more}", items[*place].path.display());
    Err(Error::failed(format!("{message}\n  `--skip-broken` counts such images and leaves them out")))
}

impl Ready {
    /// The scores of images `[B, 3, H, W]`, checked.
    fn score(&mut self, items: &[&Item], images: &Tensor, device: Device) -> Result<Vec<f32>> {
        let _no_grad = tch::no_grad_guard();
        let device = if self.needs.on_cpu { Device::Cpu } else { device };
        let images = images.f_to_device(device)?;
        let sigma = Tensor::f_zeros([items.len() as i64], (Kind::Float, device))?;
        let batch = RewardBatch {
            prompts: items.iter().map(|item| item.prompt.as_str()).collect(),
            sigma: Some(TensorView::from_torch(&sigma)?),
            images: if self.needs.images { Some(TensorView::from_torch(&images)?) } else { None },
            ..RewardBatch::default()
        };
        let scores = self.reward.score(&batch).and_then(|scores| check(&scores, items).map(|()| scores));
        scores
            .map_err(|source| source.context(format!("reward `{}` (provided by {})", self.name, self.provider)).into())
    }
}

/// Refuses a wrong number of scores, and one that is not finite.
fn check(scores: &[f32], items: &[&Item]) -> advdmd_sdk::Result<()> {
    if scores.len() != items.len() {
        let message =
            format!("gave {} scores for {} images, the first {}", scores.len(), items.len(), shown(items.first()));
        return Err(advdmd_sdk::Error::invalid(message));
    }
    match scores.iter().position(|score| !score.is_finite()) {
        Some(at) => {
            let message = format!("scored {} (\"{}\") with {}", shown(items.get(at)), items[at].prompt, scores[at]);
            Err(advdmd_sdk::Error::invalid(message))
        }
        None => Ok(()),
    }
}

fn shown(item: Option<&&Item>) -> String {
    item.map_or_else(String::new, |item| item.path.display().to_string())
}

impl Summary {
    /// Of these scores; `None` of none.
    pub fn of(scores: &[f32]) -> Option<Self> {
        let min = scores.iter().copied().reduce(f32::min)?;
        let max = scores.iter().copied().reduce(f32::max)?;
        let count = scores.len() as f64;
        let mean = scores.iter().map(|score| f64::from(*score)).sum::<f64>() / count;
        let squares = scores.iter().map(|score| (f64::from(*score) - mean).powi(2)).sum::<f64>();
        Some(Self { mean, std: (squares / count).sqrt(), min, max })
    }
}

impl Scores {
    /// Writes the scores as JSON; the file appears whole or not at all.
    ///
    /// # Errors
    /// Names the file.
    pub fn write(&self, path: &Path) -> Result<()> {
        crate::files::write_json(path, self)
    }

    /// A reward's scores in the order of the images.
    pub fn of(&self, reward: &str) -> Vec<f32> {
        self.images.iter().filter_map(|image| image.scores.get(reward).copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_of_the_images_at_hand() {
        let found = Summary::of(&[1.0, 3.0, 2.0, 2.0]).unwrap();
        assert_eq!(found, Summary { mean: 2.0, std: 0.5_f64.sqrt(), min: 1.0, max: 3.0 });
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn scores_are_checked() {
        let items = ["a.png", "b.png"].map(|path| Item { path: path.into(), prompt: "a 7".to_owned() });
        let items: Vec<&Item> = items.iter().collect();
        assert_eq!(check(&[1.0, 2.0], &items), Ok(()));
        let message = check(&[1.0], &items).unwrap_err().to_string();
        assert!(message.contains("gave 1 scores for 2 images"), "{message}");
        let message = check(&[1.0, f32::NAN], &items).unwrap_err().to_string();
        assert!(message.contains("scored b.png (\"a 7\") with NaN"), "{message}");
    }
}
