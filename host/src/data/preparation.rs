//! Reading a list of images once: each is checked, and encoded if the cache does not have it.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use serde_json::json;
use sha2::{Digest, Sha256};
use tch::Tensor;

use super::images::{Framing, ImageSet, Item, Latents, Picture, Source};
use super::picture;
use super::{Broken, Preparation, Scope, Summary};
use crate::cache::{self, Facts, Filling, KnownImages, hex, key_of};
use crate::config::{ImageOptions, OnBroken};
use crate::device::upload;
use crate::digests::Stamp;
use crate::{Error, Result};

/// Images that are read and decoded side by side, at most.
const BATCH: usize = 64;
/// Pixels that are encoded at a time: two images of 1024 x 1024, since an encoder's first layers are wide.
const ENCODED_PIXELS: usize = 2 << 20;
/// Images that are enough for a look.
const SAMPLE: usize = 8;
/// Broken images that are named one by one.
const NAMED: usize = 10;

/// Makes a set of `items`, which were found at `from`.
///
/// # Errors
/// A broken image where none is allowed, no image that is whole, the backbone's, the disk's, or Ctrl-C.
pub(super) fn prepare(
    from: &str,
    items: Vec<Item>,
    options: &ImageOptions,
    with: &Preparation<'_>,
) -> Result<ImageSet> {
    let spec = with.backbone.spec();
    let [_, height, width] = spec.image_shape;
    let framing = Framing { size: [width as u32, height as u32], random_crops: options.random_crops };
    let more =
        json!({ "image_shape": spec.image_shape, "latent_shape": spec.latent_shape, "version": picture::VERSION });
    let latents = match (with.cache, with.scope) {
        (None, _) => Latents::Drawn,
        (Some(_), Scope::Sample) => Latents::Memory(HashMap::new()),
        (Some(cache), Scope::All) => Latents::Shelf(cache.shelf(cache::Kind::Latents, &more)?),
    };
    let cache = with.cache.filter(|_| with.scope == Scope::All);
    let known = cache.map(|cache| cache.known_images(from));
    let reader = Reader { with, framing, latents, known, filling: None, encoded: 0 };
    let listed = items.len();
    let captions = items.iter().map(|item| item.caption.as_str()).collect::<HashSet<_>>().len();
    let (read, latents) = reader.read_all(few_or_all(items, with.scope))?;
    let mut set = gather(read, framing);
    set.latents = latents;
    from.clone_into(&mut set.summary.source);
    set.summary.cache = cache.map(|cache| cache.root().to_owned());
    refuse(&set, options.on_broken)?;
    if with.scope == Scope::Sample {
        let images = (listed, listed * framing.crops());
        (set.summary.prompts, set.summary.images, set.summary.latents) = (captions, images.0, images.1);
    }
    Ok(set)
}

/// An image of a list, read.
struct Read {
    item: Item,
    facts: Result<Facts, String>,
}

struct Reader<'a> {
    with: &'a Preparation<'a>,
    framing: Framing,
    latents: Latents,
    known: Option<KnownImages>,
    /// Shown from the first image on that is not known.
    filling: Option<Filling>,
    /// Crops encoded so far.
    encoded: usize,
}

impl Reader<'_> {
    fn read_all(mut self, items: Vec<Item>) -> Result<(Vec<Read>, Latents)> {
        let total = items.len();
        let mut read: Vec<Read> = Vec::with_capacity(total);
        let mut items = items.into_iter();
        while read.len() < total {
            let batch: Vec<Item> = items.by_ref().take(BATCH).collect();
            self.read(batch, total, &mut read)?;
            if let Some(stopped) = self.advance(read.len()) {
                self.save()?;
                return Err(stopped);
            }
        }
        self.save()?;
        Ok((read, self.latents))
    }

    fn advance(&mut self, done: usize) -> Option<Error> {
        let filling = self.filling.as_mut()?;
        let encoded = if self.latents.are_kept() { format!("{} encoded", self.encoded) } else { String::new() };
        filling.advance(done, encoded);
        filling.stopped(done, self.latents.are_kept())
    }

    fn save(&mut self) -> Result<()> {
        self.latents.flush()?;
        if let Some(known) = &mut self.known {
            known.save();
        }
        Ok(())
    }

    /// Reads a batch; what is neither known nor encoded is decoded and encoded.
    fn read(&mut self, batch: Vec<Item>, total: usize, read: &mut Vec<Read>) -> Result<()> {
        let mut looks: Vec<Look> = batch.iter().map(|item| self.look(item)).collect();
        if looks.iter().any(|look| look.facts.is_none()) && self.filling.is_none() {
            self.filling = Some(Filling::new("reading images", total)?);
        }
        side_by_side(&batch, &mut looks, Look::read);
        for look in &mut looks {
            look.wanted = match &look.facts {
                Some(Ok(facts)) => !look.bytes.is_empty() && !self.is_encoded(facts),
                _ => false,
            };
        }
        let framing = self.framing;
        side_by_side(&batch, &mut looks, |_, look| look.decode(framing));
        self.encode(&batch, &mut looks)?;
        for (item, look) in batch.into_iter().zip(looks) {
            let facts = look.facts.unwrap_or_else(|| Err("not read".to_owned()));
            if let (Some(known), Some(stamp), Ok(facts)) = (&mut self.known, &look.stamp, &facts) {
                known.put(&look.name, stamp, *facts);
            }
            read.push(Read { item, facts });
        }
        Ok(())
    }

    /// What is known of an image without reading it.
    fn look(&self, item: &Item) -> Look {
        let stamp = item.source.file().metadata().ok().map(|file| Stamp::of(&file));
        let name = match &item.source {
            Source::File(_) => item.source.to_string(),
            // A shard may be packed anew with the same names.
            Source::Member { offset, .. } => format!("{} at {offset}", item.source),
        };
        let known = self.known.as_ref().zip(stamp.as_ref()).and_then(|(known, stamp)| known.get(&name, stamp));
        let known = known.filter(|facts| self.is_encoded(facts));
        let facts = if item.caption.is_empty() {
            Some(Err("its caption is empty or missing".to_owned()))
        } else {
            known.map(Ok)
        };
        Look { name, stamp, facts, bytes: Vec::new(), wanted: false, crops: Vec::new() }
    }

    fn is_encoded(&self, facts: &Facts) -> bool {
        (0..self.framing.crops()).all(|crop| self.latents.has(&self.framing.key(&facts.digest, crop)))
    }

    /// Encodes the crops of a batch, in the order of the list.
    fn encode(&mut self, items: &[Item], looks: &mut [Look]) -> Result<()> {
        if matches!(self.latents, Latents::Drawn) {
            return Ok(());
        }
        let size = self.framing.size;
        let mut waiting = Vec::new();
        for (item, look) in items.iter().zip(looks) {
            let Some(Ok(facts)) = look.facts else { continue };
            for (crop, pixels) in std::mem::take(&mut look.crops).into_iter().enumerate() {
                waiting.push((&item.source, self.framing.key(&facts.digest, crop), pixels));
            }
        }
        let at_a_time = (ENCODED_PIXELS / (size[0] as usize * size[1] as usize).max(1)).clamp(1, BATCH);
        for batch in waiting.chunks(at_a_time) {
            let images = batch.iter().map(|(.., pixels)| picture::tensor(pixels, size)).collect::<Result<Vec<_>>>()?;
            let images = upload(&Tensor::f_stack(&images, 0)?, self.with.device)?;
            let latents = tch::no_grad(|| self.with.backbone.encode_images(&images))?;
            for (row, (source, key, _)) in batch.iter().enumerate() {
                let latents = latents.f_get(row as i64)?;
                // What is kept for good had better be a number.
                if latents.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
                    return Err(Error::contract(format!("{source}: the backbone's latents are not finite")));
                }
                self.latents.put(*key, &latents)?;
                self.encoded += 1;
            }
        }
        Ok(())
    }
}

/// What is known of an image, and its pixels where they are wanted.
struct Look {
    /// What the list of known images calls it.
    name: String,
    stamp: Option<Stamp>,
    /// `None` until it is read.
    facts: Option<Result<Facts, String>>,
    bytes: Vec<u8>,
    /// Whether its pixels are.
    wanted: bool,
    crops: Vec<Vec<u8>>,
}

impl Look {
    /// Reads the image, unless it is known.
    fn read(item: &Item, look: &mut Self) {
        if look.facts.is_none() {
            let bytes = item.source.read().map_err(|error| error.to_string());
            look.facts = Some(bytes.and_then(|bytes| {
                look.bytes = bytes;
                Ok(Facts { digest: key_of(&look.bytes), size: picture::size(&look.bytes)? })
            }));
        }
    }

    /// Makes its crops, if they are wanted.
    fn decode(&mut self, framing: Framing) {
        let bytes = std::mem::take(&mut self.bytes);
        let Some(Ok(facts)) = self.facts.as_ref().filter(|_| self.wanted) else { return };
        let places = (0..framing.crops()).map(|crop| framing.place(&facts.digest, crop));
        let crops = picture::decode(&bytes)
            .and_then(|image| places.map(|place| picture::fit(&image, framing.size, place)).collect());
        match crops {
            Ok(crops) => self.crops = crops,
            Err(why) => self.facts = Some(Err(why)),
        }
    }
}

/// Calls `f` for each pair, on as many threads as there are cores.
fn side_by_side<A: Sync, B: Send>(left: &[A], right: &mut [B], f: impl Fn(&A, &mut B) + Sync) {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let share = left.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        for (left, right) in left.chunks(share).zip(right.chunks_mut(share)) {
            let f = &f;
            scope.spawn(move || left.iter().zip(right).for_each(|(left, right)| f(left, right)));
        }
    });
}

/// All items, or a few of them with different captions, evenly over the list.
fn few_or_all(items: Vec<Item>, scope: Scope) -> Vec<Item> {
    let every = if scope == Scope::All { 1 } else { items.len().div_ceil(SAMPLE).max(1) };
    items.into_iter().step_by(every).collect()
}

/// The whole images with their captions, and what was found broken.
fn gather(read: Vec<Read>, framing: Framing) -> ImageSet {
    let mut ids: HashMap<String, usize> = HashMap::new();
    let (mut prompts, mut pictures, mut of_prompt) = (Vec::new(), Vec::new(), Vec::<Vec<usize>>::new());
    let mut summary = Summary::default();
    let mut hasher = Sha256::new();
    for Read { item, facts } in read {
        let facts = match facts {
            Ok(facts) => facts,
            Err(why) => {
                summary.broken.push(Broken { name: item.source.to_string(), why });
                continue;
            }
        };
        hasher.update(key_of(&item.caption));
        hasher.update(facts.digest);
        summary.enlarged += usize::from(facts.size[0] < framing.size[0] || facts.size[1] < framing.size[1]);
        let prompt = *ids.entry(item.caption).or_insert_with_key(|caption| {
            prompts.push(caption.clone());
            of_prompt.push(Vec::new());
            prompts.len() - 1
        });
        of_prompt[prompt].push(pictures.len());
        pictures.push(Picture { source: item.source, digest: facts.digest, prompt });
    }
    summary.prompts = prompts.len();
    summary.images = pictures.len();
    summary.latents = pictures.len() * framing.crops();
    summary.sha256 = hex(&hasher.finalize());
    ImageSet { prompts, pictures, of_prompt, framing, latents: Latents::Drawn, summary }
}

/// Says what was found broken or small; an error where it is too much.
fn refuse(set: &ImageSet, on_broken: OnBroken) -> Result<()> {
    let Summary { source, images, broken, enlarged, .. } = &set.summary;
    let all = images + broken.len();
    if *images == 0 || (on_broken == OnBroken::Stop && !broken.is_empty()) {
        let mut message = format!("{source}: {} of {all} images cannot be used:", broken.len());
        for broken in broken.iter().take(NAMED) {
            let _ = write!(message, "\n  {}: {}", broken.name, broken.why);
        }
        if broken.len() > NAMED {
            let _ = write!(message, "\n  and {} more", broken.len() - NAMED);
        }
        let hint = if *images == 0 { None } else { Some("mend them, or set data.on_broken = \"skip\"".to_owned()) };
        return Err(Error::usage(message, hint));
    }
    for broken in broken.iter().take(NAMED) {
        tracing::warn!("left out: {}: {}", broken.name, broken.why);
    }
    if broken.len() > NAMED {
        tracing::warn!("left out: {} of {all} images, {} not named here", broken.len(), broken.len() - NAMED);
    }
    if *enlarged > 0 {
        let [width, height] = set.framing.size;
        tracing::warn!("{enlarged} of {images} images are smaller than {width}x{height} and were enlarged");
    }
    Ok(())
}
