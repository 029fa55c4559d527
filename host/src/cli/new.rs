//! `advdmd new`: a plugin to start from.

use std::path::{Path, PathBuf};

use advdmd::registry::{Provider, Registry};
use advdmd::scaffold::{Language, Scaffold, Sdk, Written};
use advdmd::{Error, Result};
use advdmd_sdk::Kind;
use clap::{Args, Subcommand};

use super::output;

/// What to write.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// A reward: scores images or latents
    Reward {
        #[command(flatten)]
        plugin: Plugin,
        /// With libtorch's tensors: for scores on the GPU, gradients and networks
        #[arg(long, conflicts_with = "c")]
        torch: bool,
        /// In plain C: one file, a Makefile and `advdmd.h`
        #[arg(long)]
        c: bool,
    },
    /// A sampler: the coefficients of each step
    Sampler {
        #[command(flatten)]
        plugin: Plugin,
        /// In plain C: one file, a Makefile and `advdmd.h`
        #[arg(long)]
        c: bool,
    },
    /// A backbone: a diffusion model with its encoders, on libtorch
    Backbone {
        #[command(flatten)]
        plugin: Plugin,
        /// Taken for granted: a backbone computes with libtorch
        #[arg(long, hide = true)]
        torch: bool,
    },
}

/// Name and place.
#[derive(Debug, Args)]
pub struct Plugin {
    /// Name of the plugin, which a configuration says as `type`: lower-case letters, digits and `-`
    name: String,
    /// The folder to write; it must not exist [default: NAME]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The SDK to build against: the folder `sdk` of a checkout [default: that of the checkout that this program was built
    /// from, if it is still there, else the published one]
    #[arg(long, value_name = "PATH")]
    sdk: Option<PathBuf>,
}

pub fn run(command: Command) -> Result<()> {
    let (kind, language, plugin) = match command {
        Command::Reward { plugin, torch: true, .. } => (Kind::Reward, Language::Torch, plugin),
        Command::Reward { plugin, c: true, .. } => (Kind::Reward, Language::C, plugin),
        Command::Reward { plugin, .. } => (Kind::Reward, Language::Rust, plugin),
        Command::Sampler { plugin, c: true } => (Kind::Sampler, Language::C, plugin),
        Command::Sampler { plugin, .. } => (Kind::Sampler, Language::Rust, plugin),
        Command::Backbone { plugin, .. } => (Kind::Backbone, Language::Torch, plugin),
    };
    if language == Language::C && plugin.sdk.is_some() {
        return Err(Error::usage("`--sdk` goes with Rust: a plugin in C needs `advdmd.h` alone", None));
    }
    refuse_taken(kind, &plugin.name)?;
    let Plugin { name, out, sdk } = plugin;
    let folder = out.unwrap_or_else(|| PathBuf::from(&name));
    let written = Scaffold { kind, name: name.clone(), language, folder: folder.clone(), sdk }.write()?;
    output::text(&summary(kind, &name, &folder, &written))
}

/// Two providers of one name are an error in every later command.
fn refuse_taken(kind: Kind, name: &str) -> Result<()> {
    let registry = Registry::discover(&[])?;
    let Some(entry) = registry.components().find(|entry| entry.kind == kind && entry.name == name) else {
        return Ok(());
    };
    let provider = match &entry.provider {
        Provider::Program => "this program".to_owned(),
        Provider::Plugin(file) => file.path.display().to_string(),
    };
    let message = format!("there is a {kind} `{name}` already (provided by {provider})");
    Err(Error::usage(message, "two of one name cannot be told apart: choose another".to_owned()))
}

fn summary(kind: Kind, name: &str, folder: &Path, written: &Written) -> String {
    let Written { files, sdk, libtorch, commands, folder: absolute } = written;
    let mut text = format!("{kind} `{name}`: {}\n", absolute.display());
    for file in files {
        text += &format!("  {}\n", file.display());
    }
    match sdk {
        Some(Sdk::Folder(sdk)) => text += &format!("built against the SDK in {}\n", sdk.display()),
        Some(Sdk::Published(version)) => {
            text += &format!(
                "built against the published advdmd-sdk {version}: the checkout that this program was built from is gone \
                 (`--sdk PATH` names another)\n"
            );
        }
        None => {}
    }
    if let Some(libtorch) = libtorch {
        text += &format!("and the libtorch in {}\n", libtorch.display());
    }
    text += &format!("\nnext:\n  cd {}\n", folder.display());
    for command in commands {
        text += &format!("  {command}\n");
    }
    text
}
