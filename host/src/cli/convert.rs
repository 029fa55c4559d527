//! `advdmd convert`: weights of other tools in the layout that plugins read.

use std::path::PathBuf;

use advdmd::Result;
use advdmd::convert::archive::Number;
use advdmd::convert::{self, ClipOptions, Converted};
use clap::{Args, Subcommand, ValueEnum};

use super::output;

/// What to convert.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Weights of an `open_clip` model, such as `HPS_v2.1_compressed.pt`, to a folder of transformers' `CLIPModel`
    ///
    /// No weight tells some of what a model computes. Taken for granted is what `CLIPModel` does: an image's feature is that of
    /// its class token, a text's that of its end-of-text token; texts have a causal mask; layer norms add 1e-5 to the variance.
    /// The activation is exact GELU, or `quick_gelu` with `--quick-gelu`. A model that was trained otherwise gives other scores.
    Clip(Clip),
}

/// The options of `advdmd convert clip`.
#[derive(Debug, Args)]
pub struct Clip {
    /// A file of torch.save (.pt, .pth, .bin), whose pickle is read without running anything, or safetensors
    input: PathBuf,
    /// The folder to write
    out: PathBuf,
    /// Type of the written numbers [default: that of the file; f32 where it holds several]
    #[arg(long, value_enum)]
    dtype: Option<Type>,
    /// The tokenizer: a folder with vocab.json and merges.txt or tokenizer.json, or
    /// `open_clip`'s `bpe_simple_vocab_16e6.txt.gz`
    #[arg(long, value_name = "DIR|FILE.txt.gz")]
    tokenizer: Option<PathBuf>,
    /// Attention heads of the image's transformer, for a model that `open_clip` has not published
    #[arg(long, value_name = "N", value_parser = super::at_least_one)]
    vision_heads: Option<usize>,
    /// Attention heads of the text's transformer, likewise
    #[arg(long, value_name = "N", value_parser = super::at_least_one)]
    text_heads: Option<usize>,
    /// Whether the activation is `quick_gelu`, as in models of `OpenAI`, `MetaCLIP` and DFN; no weight tells it [default:
    /// false, which is `open_clip`'s own and right for LAION's models, HPSv2 and `PickScore`]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    quick_gelu: Option<bool>,
}

/// Types of numbers.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Type {
    F32,
    F16,
    Bf16,
}

impl From<Type> for Number {
    fn from(dtype: Type) -> Self {
        match dtype {
            Type::F32 => Self::F32,
            Type::F16 => Self::F16,
            Type::Bf16 => Self::Bf16,
        }
    }
}

pub fn run(command: &Command) -> Result<()> {
    let Command::Clip(args) = command;
    let options = ClipOptions {
        dtype: args.dtype.map(Number::from),
        tokenizer: args.tokenizer.clone(),
        heads: [args.vision_heads, args.text_heads],
        quick_gelu: args.quick_gelu.unwrap_or(false),
    };
    let converted = convert::clip(&args.input, &args.out, &options)?;
    output::text(&summary(args, &converted))
}

/// What no weight tells, beside the activation.
const ASSUMED: &str =
    "features of the class token and of the end-of-text token, causal mask of texts, layer norm eps 1e-5";

fn summary(args: &Clip, converted: &Converted) -> String {
    let Converted { architecture, tensors, numbers, dtype, skipped } = converted;
    let name = match architecture.published {
        Some(name) => format!("{name}-{}", architecture.patch),
        None => "CLIP model".to_owned(),
    };
    let tower = |tower: &convert::open_clip::Tower| {
        format!("width {}, {} layers, {} heads", tower.width, tower.layers, tower.heads)
    };
    let activation = match args.quick_gelu {
        Some(true) => "quick_gelu".to_owned(),
        Some(false) => "gelu".to_owned(),
        None => "gelu (no weight tells it: `--quick-gelu` for models of OpenAI, MetaCLIP and DFN)".to_owned(),
    };
    let rows = [
        ("model", format!("{name}, images of {0}x{0}, features of {1}", architecture.image, architecture.embed)),
        ("images", tower(&architecture.vision)),
        ("texts", format!("{}, {} tokens", tower(&architecture.text), architecture.context)),
        ("activation", activation),
        ("assumed", ASSUMED.to_owned()),
        ("weights", format!("{tensors} tensors, {:.1} million numbers, {dtype}", *numbers as f64 / 1e6)),
    ];
    let mut rows: Vec<_> = rows.map(|(name, value)| vec![name.to_owned(), value]).to_vec();
    if !skipped.is_empty() {
        rows.push(vec!["left out".to_owned(), skipped.join(", ")]);
    }
    let out = args.out.display();
    let mut text = format!("{}\nwritten to {out}", output::columns(&rows));
    if args.tokenizer.is_none() {
        text += &format!(
            "\nstill to be copied to {out}: the tokenizer's vocab.json and merges.txt, such as those of \
             openai/clip-vit-large-patch14 (`--tokenizer` does it)"
        );
    }
    text
}
