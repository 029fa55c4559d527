//! A plugin to start from, outside of any workspace: what `advdmd new` writes.

mod name;
mod sources;
mod templates;

use std::path::{Path, PathBuf};

use advdmd_sdk::Kind;

use crate::error::{Error, Result};
use crate::files;

pub use sources::Sdk;

/// What the plugin is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// Rust without libtorch: quick to build.
    Rust,
    /// Rust with libtorch's tensors: gradients, devices, networks.
    Torch,
    /// C, or C++.
    C,
}

/// A plugin to write.
#[derive(Debug)]
pub struct Scaffold {
    /// Reward, sampler or backbone.
    pub kind: Kind,
    /// Name of the plugin and of its component.
    pub name: String,
    /// What it is written in; a backbone is always [`Language::Torch`], and a sampler never.
    pub language: Language,
    /// The folder to write, which must not exist.
    pub folder: PathBuf,
    /// The SDK, or a checkout of the project; `None`: that of the checkout that this program was built from, if it is still
    /// there, else the published one.
    pub sdk: Option<PathBuf>,
}

/// What was written.
#[derive(Debug)]
pub struct Written {
    /// The folder.
    pub folder: PathBuf,
    /// The files in it, relative to it.
    pub files: Vec<PathBuf>,
    /// Where the SDK comes from; `None` for C, which needs none.
    pub sdk: Option<Sdk>,
    /// The libtorch that it is built against, if it uses one.
    pub libtorch: Option<PathBuf>,
    /// What to type next, in the folder.
    pub commands: [String; 3],
}

impl Scaffold {
    /// Writes the folder, whole or not at all.
    ///
    /// # Errors
    /// A name that Rust or a configuration cannot use, a folder that exists, a language that the kind does not have, an SDK
    /// or libtorch that is not there.
    pub fn write(&self) -> Result<Written> {
        name::check(&self.name)?;
        let templates = templates::of(self.kind, self.language)?;
        let folder = std::path::absolute(&self.folder).map_err(Error::file("find", &self.folder))?;
        if folder.symlink_metadata().is_ok() {
            let hint = "nothing is overwritten: choose another `--out`, or move it away".to_owned();
            return Err(Error::usage(format!("{} exists already", folder.display()), hint));
        }
        let sdk = (self.language != Language::C).then(|| Sdk::find(self.sdk.as_deref())).transpose()?;
        let libtorch = (self.language == Language::Torch).then(sources::libtorch).transpose()?;
        let commands = self.commands();
        let values = self.values(sdk.as_ref(), libtorch.as_deref(), &commands)?;
        let fill = |text: &str| values.iter().fold(text.to_owned(), |text, (key, value)| text.replace(key, value));

        let files: Vec<_> = templates.iter().map(|(path, text)| (PathBuf::from(fill(path)), fill(text))).collect();
        files::replace_dir(&folder, |new| {
            for (path, text) in &files {
                let path = new.join(path);
                path.parent().map_or(Ok(()), files::create_dir)?;
                files::write(&path, text.as_bytes())?;
            }
            Ok(())
        })?;
        Ok(Written { folder, files: files.into_iter().map(|(path, _)| path).collect(), sdk, libtorch, commands })
    }

    /// Name of the library's crate, and part of its symbol.
    fn crate_name(&self) -> String {
        self.name.replace('-', "_")
    }

    /// Where the built library lies.
    fn library(&self) -> &'static str {
        if self.language == Language::C { "." } else { "target/debug" }
    }

    fn commands(&self) -> [String; 3] {
        let Self { kind, name, .. } = self;
        let library = self.library();
        let build = if self.language == Language::C { "make" } else { "cargo build" };
        let third = match kind {
            Kind::Reward => "advdmd train train.toml".to_owned(),
            Kind::Sampler => format!(
                "ADVDMD_PLUGIN_PATH={library} advdmd sample --backbone digits --sampler {name} --prompt 'a red 7' --out pictures"
            ),
            Kind::Backbone => "advdmd pretrain pretrain.toml".to_owned(),
        };
        [build.to_owned(), format!("advdmd check {kind} 'type={name}' --plugin-path {library}"), third]
    }

    /// What stands for what in the templates.
    fn values(
        &self,
        sdk: Option<&Sdk>,
        libtorch: Option<&Path>,
        commands: &[String; 3],
    ) -> Result<Vec<(&'static str, String)>> {
        let mut values = vec![
            ("{{name}}", self.name.clone()),
            ("{{crate}}", self.crate_name()),
            ("{{kind}}", self.kind.to_string()),
            ("{{library}}", self.library().to_owned()),
            ("{{third}}", commands[2].clone()),
        ];
        if let Some(sdk) = sdk {
            for (key, folder) in
                [("{{sdk}}", ""), ("{{build}}", "build"), ("{{nn}}", "nn"), ("{{conformance}}", "conformance")]
            {
                values.push((key, sdk.dependency(folder)?));
            }
        }
        if let Some(libtorch) = libtorch {
            values.push(("{{libtorch}}", sources::toml_text(libtorch)?));
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests;
