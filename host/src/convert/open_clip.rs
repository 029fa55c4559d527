//! `open_clip`'s names of a CLIP model's weights, and the architecture that their shapes tell.
//!
//! Sources: `open_clip/model.py` and `transformer.py` for the one side, transformers' `convert_clip_original_pytorch_to_hf.py`
//! for the other.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Value as Json, json};

use super::archive::shown;

/// Tokens of CLIP's own vocabulary.
pub const CLIP_VOCABULARY: usize = 49408;

/// `OpenAI`'s mean and standard deviation of pixels, which all of these models share.
const MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// Heads of the published models by `[vision width, vision layers, text width, text layers]`: no shape tells them
/// (`open_clip/model_configs`: width over `head_width` for images, `heads` for text).
const PUBLISHED: [(&str, [usize; 4], [usize; 2]); 11] = [
    ("ViT-S-alt", [384, 12, 256, 10], [6, 4]),
    ("ViT-S", [384, 12, 384, 12], [6, 6]),
    ("ViT-M-alt", [512, 12, 384, 12], [8, 6]),
    ("ViT-M", [512, 12, 512, 12], [8, 8]),
    ("ViT-B", [768, 12, 512, 12], [12, 8]),
    ("ViT-B-plus", [896, 12, 640, 12], [14, 10]),
    ("ViT-L", [1024, 24, 768, 12], [16, 12]),
    ("ViT-H", [1280, 32, 1024, 24], [16, 16]),
    ("ViT-g", [1408, 40, 1024, 24], [16, 16]),
    ("ViT-bigG", [1664, 48, 1280, 32], [16, 20]),
    ("ViT-e", [1792, 56, 1280, 36], [16, 20]),
];

/// Names and shapes of a file's tensors.
pub type Shapes<'a> = BTreeMap<&'a str, &'a [usize]>;

/// One of the two transformers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tower {
    /// Size of a token.
    pub width: usize,
    /// Blocks.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Size of the hidden layer of a block.
    pub mlp: usize,
}

/// What the shapes and the published models say of a CLIP model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Architecture {
    /// `open_clip`'s name of it, without its patch size; `None` for one that nobody published.
    pub published: Option<&'static str>,
    /// The image's transformer.
    pub vision: Tower,
    /// The text's.
    pub text: Tower,
    /// Side of a patch in pixels.
    pub patch: usize,
    /// Side of an image in pixels.
    pub image: usize,
    /// Tokens that there are.
    pub vocabulary: usize,
    /// Tokens of a text.
    pub context: usize,
    /// Size of the features that are compared.
    pub embed: usize,
}

/// How a tensor is made of a stored one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// It is the same.
    Whole,
    /// Rows and columns change places.
    Transposed,
    /// A third of the rows: queries, keys or values.
    Third(usize),
}

/// A tensor of `CLIPModel` and what it is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its name in transformers.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The stored tensor.
    pub source: String,
    /// How it is made of that.
    pub part: Part,
}

/// What precedes all names, such as `module.` of a model that was trained on several devices.
///
/// # Errors
/// No image transformer; in words.
pub fn prefix<'a>(shapes: &Shapes<'a>) -> Result<&'a str, String> {
    let mut found = shapes.keys().filter_map(|name| name.strip_suffix("visual.conv1.weight"));
    found.next().ok_or_else(|| {
        let some: Vec<String> = shapes.keys().take(4).map(|name| shown(name)).collect();
        format!(
            "holds no `visual.conv1.weight`, so it is no CLIP model with a ViT under open_clip's names; it holds {} tensors such \
             as {}",
            shapes.len(),
            some.join(", ")
        )
    })
}

impl Architecture {
    /// Reads the architecture off the shapes. `heads` are those of images and of text, where the user gives them.
    ///
    /// # Errors
    /// A tensor that is missing or has a shape that cannot be, or an unpublished architecture without `heads`; in words.
    pub fn of(shapes: &Shapes<'_>, prefix: &str, heads: [Option<usize>; 2]) -> Result<Self, String> {
        let get = |name: &str, rank: usize| -> Result<&[usize], String> {
            let name = format!("{prefix}{name}");
            let shape = *shapes.get(name.as_str()).ok_or_else(|| format!("{} is missing", shown(&name)))?;
            if shape.len() != rank || shape.contains(&0) {
                return Err(format!("{} has shape {shape:?}, expected {rank} dimensions", shown(&name)));
            }
            Ok(shape)
        };
        let layers = |tower: &str| {
            let start = format!("{prefix}{tower}resblocks.");
            let blocks = shapes.keys().filter_map(|name| name.strip_prefix(start.as_str())?.split('.').next());
            blocks.collect::<BTreeSet<_>>().len()
        };
        let patches = get("visual.conv1.weight", 4)?;
        let (width, patch) = (patches[0], patches[2]);
        let places = get("visual.positional_embedding", 2)?[0] - 1;
        let grid = places.isqrt();
        if grid == 0 || grid * grid != places {
            return Err(format!(
                "visual.positional_embedding has {places} places beside the class, which are no square"
            ));
        }
        let tokens = get("token_embedding.weight", 2)?;
        let mut found = Self {
            published: None,
            vision: Tower {
                width,
                layers: layers("visual.transformer."),
                heads: 0,
                mlp: get("visual.transformer.resblocks.0.mlp.c_fc.weight", 2)?[0],
            },
            text: Tower {
                width: tokens[1],
                layers: layers("transformer."),
                heads: 0,
                mlp: get("transformer.resblocks.0.mlp.c_fc.weight", 2)?[0],
            },
            patch,
            image: grid.checked_mul(patch).ok_or("its patches are too large")?,
            vocabulary: tokens[0],
            context: get("positional_embedding", 2)?[0],
            embed: get("visual.proj", 2)?[1],
        };
        found.set_heads(heads)?;
        Ok(found)
    }

    fn set_heads(&mut self, given: [Option<usize>; 2]) -> Result<(), String> {
        let key = [self.vision.width, self.vision.layers, self.text.width, self.text.layers];
        let published = PUBLISHED.iter().find(|(_, shape, _)| *shape == key);
        self.published = published.map(|(name, ..)| *name);
        let known = published.map(|(_, _, heads)| *heads);
        let [vision, text] = std::array::from_fn(|tower| given[tower].or(known.map(|heads| heads[tower])));
        let (Some(vision), Some(text)) = (vision, text) else {
            return Err(format!(
                "no published model of open_clip has a vision transformer of width {} and {} layers beside a text transformer of \
                 width {} and {} layers, and no shape tells how many heads they have: give `--vision-heads` and `--text-heads` \
                 (open_clip's rule is width / 64, or `head_width` in the model's config)",
                key[0], key[1], key[2], key[3]
            ));
        };
        for (option, tower, heads) in
            [("--vision-heads", &mut self.vision, vision), ("--text-heads", &mut self.text, text)]
        {
            if heads == 0 || tower.width % heads != 0 {
                return Err(format!("{option}: {heads} heads do not divide a width of {}", tower.width));
            }
            tower.heads = heads;
        }
        match self.published {
            Some(name) if self.vocabulary != CLIP_VOCABULARY => Err(format!(
                "a {name} with {} tokens: it does not use CLIP's tokenizer of {CLIP_VOCABULARY}, and takes its text features from \
                 another place than transformers' CLIPModel does",
                self.vocabulary
            )),
            _ => Ok(()),
        }
    }

    /// The stored tensors that such a model has, and what becomes of each.
    pub fn targets(&self, prefix: &str) -> Vec<Target> {
        let mut all = Vec::new();
        let mut add = |source: &str, name: &str, shape: &[usize], part: Part| {
            let (name, source) = (name.to_owned(), format!("{prefix}{source}"));
            all.push(Target { name, shape: shape.to_vec(), source, part });
        };
        let (vision, text, embed) = (&self.vision, &self.text, self.embed);
        let (grid, patch) = (self.image / self.patch, self.patch);
        add("logit_scale", "logit_scale", &[], Part::Whole);
        add("text_projection", "text_projection.weight", &[embed, text.width], Part::Transposed);
        add("visual.proj", "visual_projection.weight", &[embed, vision.width], Part::Transposed);
        let embeddings = "vision_model.embeddings.";
        add("visual.class_embedding", &format!("{embeddings}class_embedding"), &[vision.width], Part::Whole);
        let kernel = [vision.width, 3, patch, patch];
        add("visual.conv1.weight", &format!("{embeddings}patch_embedding.weight"), &kernel, Part::Whole);
        let places = [grid * grid + 1, vision.width];
        add("visual.positional_embedding", &format!("{embeddings}position_embedding.weight"), &places, Part::Whole);
        let embeddings = "text_model.embeddings.";
        let tokens = [self.vocabulary, text.width];
        add("token_embedding.weight", &format!("{embeddings}token_embedding.weight"), &tokens, Part::Whole);
        let places = [self.context, text.width];
        add("positional_embedding", &format!("{embeddings}position_embedding.weight"), &places, Part::Whole);
        for (source, name, width) in [
            ("visual.ln_pre", "vision_model.pre_layrnorm", vision.width),
            ("visual.ln_post", "vision_model.post_layernorm", vision.width),
            ("ln_final", "text_model.final_layer_norm", text.width),
        ] {
            for part in ["weight", "bias"] {
                add(&format!("{source}.{part}"), &format!("{name}.{part}"), &[width], Part::Whole);
            }
        }
        for (source, name, tower) in [("visual.", "vision_model", vision), ("", "text_model", text)] {
            for layer in 0..tower.layers {
                let source = format!("{source}transformer.resblocks.{layer}");
                block(&source, &format!("{name}.encoder.layers.{layer}"), tower, &mut add);
            }
        }
        all
    }

    /// The `config.json` of transformers' `CLIPModel`.
    pub fn config(&self, activation: &str, dtype: &str) -> Json {
        let tower = |tower: &Tower| {
            json!({
                "hidden_size": tower.width,
                "intermediate_size": tower.mlp,
                "num_hidden_layers": tower.layers,
                "num_attention_heads": tower.heads,
                "hidden_act": activation,
                "layer_norm_eps": 1e-5,
                "projection_dim": self.embed,
                "attention_dropout": 0.0,
            })
        };
        let with = |mut table: Json, more: Json| {
            if let (Json::Object(table), Json::Object(more)) = (&mut table, more) {
                table.extend(more);
            }
            table
        };
        // open_clip takes the features of a text at its highest token, which is the end of the text and the last of the
        // vocabulary.
        let text = json!({
            "model_type": "clip_text_model",
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.context,
            "bos_token_id": self.vocabulary.saturating_sub(2),
            "eos_token_id": self.vocabulary - 1,
        });
        let vision = json!({
            "model_type": "clip_vision_model",
            "image_size": self.image,
            "patch_size": self.patch,
            "num_channels": 3,
        });
        json!({
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": self.embed,
            "logit_scale_init_value": 2.6592,
            "torch_dtype": dtype,
            "text_config": with(tower(&self.text), text),
            "vision_config": with(tower(&self.vision), vision),
        })
    }

    /// The `preprocessor_config.json` of transformers' `CLIPImageProcessor`.
    pub fn preprocessor(&self) -> Json {
        json!({
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": true,
            "do_resize": true,
            "size": { "shortest_edge": self.image },
            "resample": 3,
            "do_center_crop": true,
            "crop_size": { "height": self.image, "width": self.image },
            "do_rescale": true,
            "rescale_factor": 1.0 / 255.0,
            "do_normalize": true,
            "image_mean": MEAN,
            "image_std": STD,
        })
    }
}

/// The tensors of a transformer's block.
fn block(source: &str, name: &str, tower: &Tower, add: &mut impl FnMut(&str, &str, &[usize], Part)) {
    let Tower { width, mlp, .. } = *tower;
    for (third, projection) in ["q_proj", "k_proj", "v_proj"].into_iter().enumerate() {
        let part = Part::Third(third);
        let target = format!("{name}.self_attn.{projection}");
        add(&format!("{source}.attn.in_proj_weight"), &format!("{target}.weight"), &[width, width], part);
        add(&format!("{source}.attn.in_proj_bias"), &format!("{target}.bias"), &[width], part);
    }
    for (layer, target, [rows, columns]) in [
        ("attn.out_proj", "self_attn.out_proj", [width, width]),
        ("mlp.c_fc", "mlp.fc1", [mlp, width]),
        ("mlp.c_proj", "mlp.fc2", [width, mlp]),
    ] {
        add(&format!("{source}.{layer}.weight"), &format!("{name}.{target}.weight"), &[rows, columns], Part::Whole);
        add(&format!("{source}.{layer}.bias"), &format!("{name}.{target}.bias"), &[rows], Part::Whole);
    }
    for (layer, target) in [("ln_1", "layer_norm1"), ("ln_2", "layer_norm2")] {
        for part in ["weight", "bias"] {
            add(&format!("{source}.{layer}.{part}"), &format!("{name}.{target}.{part}"), &[width], Part::Whole);
        }
    }
}

impl Target {
    /// The shape of the stored tensor.
    pub fn stored(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        match self.part {
            Part::Whole => {}
            Part::Transposed => shape.reverse(),
            Part::Third(_) => shape[0] *= 3,
        }
        shape
    }

    /// Its numbers, from those of the stored tensor.
    pub fn take(&self, mut stored: Vec<f32>) -> Vec<f32> {
        match self.part {
            Part::Whole => stored,
            Part::Third(third) => {
                let size = stored.len() / 3;
                stored.drain(..third * size);
                stored.truncate(size);
                stored
            }
            Part::Transposed => {
                let [rows, columns] = [self.shape[0], self.shape[1]];
                (0..rows)
                    .flat_map(|row| (0..columns).map(move |column| (row, column)))
                    .map(|(row, column)| stored[column * rows + row])
                    .collect()
            }
        }
    }
}

/// Holds what a file has against what the model needs.
///
/// # Errors
/// All that is missing, left over or misshapen, in one text.
pub fn check(shapes: &Shapes<'_>, targets: &[Target]) -> Result<(), String> {
    let wanted: BTreeMap<&str, Vec<usize>> =
        targets.iter().map(|target| (target.source.as_str(), target.stored())).collect();
    let missing = wanted.iter().filter(|(name, _)| !shapes.contains_key(*name));
    let missing: Vec<_> = missing.map(|(name, shape)| format!("{} {shape:?}", shown(name))).collect();
    let unknown = shapes.iter().filter(|(name, _)| !wanted.contains_key(*name));
    let unknown: Vec<_> = unknown.map(|(name, shape)| format!("{} {shape:?}", shown(name))).collect();
    let misshapen = wanted.iter().filter_map(|(name, shape)| {
        let found = *shapes.get(name)?;
        // A number may be stored as a list of one.
        let scalar = shape.is_empty() && found == [1];
        (found != shape.as_slice() && !scalar).then(|| format!("{} {found:?}, expected {shape:?}", shown(name)))
    });
    let parts = [("missing", missing), ("unknown", unknown), ("misshapen", misshapen.collect())];
    let parts = parts.into_iter().filter(|(_, names)| !names.is_empty());
    let parts: Vec<_> = parts.map(|(what, names)| format!("\n  {} {what}: {}", names.len(), list(&names))).collect();
    if parts.is_empty() {
        return Ok(());
    }
    Err(format!("does not hold the weights of a CLIP model with a ViT and nothing else:{}", parts.concat()))
}

/// Names of a list that may be very long.
fn list(names: &[String]) -> String {
    const MOST: usize = 40;
    let more = names.len().saturating_sub(MOST);
    let shown = names[..names.len() - more].join(", ");
    if more == 0 { shown } else { format!("{shown}, and {more} more") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> Architecture {
        Architecture {
            published: None,
            vision: Tower { width: 8, layers: 2, heads: 2, mlp: 32 },
            text: Tower { width: 4, layers: 1, heads: 1, mlp: 16 },
            patch: 2,
            image: 6,
            vocabulary: 11,
            context: 7,
            embed: 5,
        }
    }

    fn stored(architecture: &Architecture, prefix: &str) -> BTreeMap<String, Vec<usize>> {
        architecture.targets(prefix).iter().map(|target| (target.source.clone(), target.stored())).collect()
    }

    fn shapes(stored: &BTreeMap<String, Vec<usize>>) -> Shapes<'_> {
        stored.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect()
    }

    #[test]
    fn shapes_tell_all_but_the_heads() {
        let stored = stored(&tiny(), "module.");
        let shapes = shapes(&stored);
        let prefix = prefix(&shapes).unwrap();
        assert_eq!(prefix, "module.");
        let found = Architecture::of(&shapes, prefix, [Some(2), Some(1)]).unwrap();
        assert_eq!(found, tiny());
        check(&shapes, &found.targets(prefix)).unwrap();
        let message = Architecture::of(&shapes, prefix, [Some(2), None]).unwrap_err();
        assert!(message.contains("width 8 and 2 layers") && message.contains("--text-heads"), "{message}");
        let message = Architecture::of(&shapes, prefix, [Some(3), Some(1)]).unwrap_err();
        assert_eq!(message, "--vision-heads: 3 heads do not divide a width of 8");
    }

    #[test]
    fn heads_of_published_models_are_known() {
        let mut huge = tiny();
        huge.vision = Tower { width: 1280, layers: 32, heads: 0, mlp: 5120 };
        huge.text = Tower { width: 1024, layers: 24, heads: 0, mlp: 4096 };
        let message = huge.clone().set_heads([None, None]).unwrap_err();
        assert!(message.contains("ViT-H with 11 tokens"), "{message}");
        huge.vocabulary = CLIP_VOCABULARY;
        huge.set_heads([None, None]).unwrap();
        assert_eq!((huge.published, huge.vision.heads, huge.text.heads), (Some("ViT-H"), 16, 16));
    }

    #[test]
    fn all_that_does_not_fit_is_one_error() {
        let mut stored = stored(&tiny(), "");
        stored.remove("visual.ln_pre.weight");
        stored.insert("visual.transformer.resblocks.0.ls_1.gamma".to_owned(), vec![8]);
        stored.insert("ln_final.bias".to_owned(), vec![3]);
        let shapes = shapes(&stored);
        let message = check(&shapes, &tiny().targets("")).unwrap_err();
        for part in [
            "1 missing: visual.ln_pre.weight [8]",
            "1 unknown: visual.transformer.resblocks.0.ls_1.gamma",
            "ln_final.bias [3], expected [4]",
        ] {
            assert!(message.contains(part), "{part:?} in {message}");
        }
    }

    #[test]
    fn tensors_are_cut_and_turned() {
        let target =
            |shape: &[usize], part| Target { name: String::new(), shape: shape.to_vec(), source: String::new(), part };
        let numbers: Vec<f32> = (0..6).map(|n| n as f32).collect();
        assert_eq!(target(&[2], Part::Third(1)).take(numbers.clone()), [2.0, 3.0]);
        // [[0, 1, 2], [3, 4, 5]] becomes [[0, 3], [1, 4], [2, 5]].
        assert_eq!(target(&[3, 2], Part::Transposed).take(numbers), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    }
}
