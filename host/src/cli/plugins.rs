//! `advdmd plugins`: what is found, and what each component takes.

use std::path::PathBuf;

use advdmd::config::SchemaView;
use advdmd::registry::{Entry, Lock, LockedPlugin, Provider, Registry};
use advdmd::{Error, Result};
use advdmd_sdk::Kind;
use advdmd_sdk::abi::Header;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value as Json, json};

use super::output;
use super::run_config::ConfigArgs;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List all components, the files they come from, and the files that were refused
    List(Where),
    /// Describe one component: its keys, their types and meaning, and its plugin
    Inspect {
        #[command(flatten)]
        component: ComponentArgs,
        #[command(flatten)]
        place: Where,
    },
    /// Write down the plugins that a configuration uses, for `advdmd train --locked`
    Pin(Pin),
    /// Print the JSON schema of a component's keys
    Schema {
        #[command(flatten)]
        component: ComponentArgs,
        #[command(flatten)]
        place: Where,
    },
}

/// What to pin, and where to write it.
#[derive(Debug, Args)]
pub struct Pin {
    #[command(flatten)]
    config: ConfigArgs,
    /// The file to write [default: advdmd.lock beside the configuration]
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,
}

/// Where to look, and how to print.
#[derive(Debug, Args)]
pub struct Where {
    /// Look in this folder or file too, before all others
    #[arg(long = "path", value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Which component.
#[derive(Debug, Args)]
pub struct ComponentArgs {
    /// What the component is
    #[arg(value_enum)]
    kind: KindArg,
    /// Its name, as `advdmd plugins list` shows it
    name: String,
}

/// A kind of component on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum KindArg {
    Reward,
    Sampler,
    Backbone,
}

impl From<KindArg> for Kind {
    fn from(kind: KindArg) -> Self {
        match kind {
            KindArg::Reward => Self::Reward,
            KindArg::Sampler => Self::Sampler,
            KindArg::Backbone => Self::Backbone,
        }
    }
}

pub fn run(command: Command) -> Result<()> {
    match command {
        Command::List(place) => list(&place),
        Command::Inspect { component, place } => {
            let registry = Registry::discover(&place.paths)?;
            inspect(registry.entry(component.kind.into(), &component.name)?, place.json)
        }
        Command::Pin(args) => pin(&args),
        Command::Schema { component, place } => {
            let registry = Registry::discover(&place.paths)?;
            // The schema is JSON with or without `--json`.
            output::json(registry.schema(component.kind.into(), &component.name)?)
        }
    }
}

fn pin(args: &Pin) -> Result<()> {
    let resolved = args.config.load_run()?;
    let lock = Registry::discover(&resolved.config.plugins.paths)?.lock(&resolved.config)?;
    let path = args.lock.clone().unwrap_or_else(|| Lock::beside(&args.config.config));
    // A slip of the hand must not cost a configuration.
    if path.is_file() && Lock::read(&path, "").is_err() {
        let message = format!("{} is there and is no lock of this program", path.display());
        return Err(Error::usage(message, "remove it, or name another file with --lock".to_owned()));
    }
    lock.write(&path)?;
    let mut rows = vec![["FILE", "PLUGIN", "VERSION", "PROTOCOL", "SHA-256", "COMPONENTS"].map(str::to_owned).to_vec()];
    rows.extend(lock.plugins.iter().map(|plugin| {
        let components = plugin.components.join(", ");
        let LockedPlugin { file, name, version, protocol, .. } = plugin.clone();
        vec![file, name, version, protocol, short(&plugin.sha256), components]
    }));
    rows.extend(lock.linked.iter().map(|linked| {
        let components = linked.components.join(", ");
        let [file, name, none] = ["this program", "linked in", "-"].map(str::to_owned);
        vec![file, name, linked.version.clone(), none.clone(), none, components]
    }));
    output::text(&format!("{}\nwritten to {}", output::columns(&rows), path.display()))
}

/// The beginning of a hash, for people.
fn short(sha256: &str) -> String {
    sha256.chars().take(12).collect()
}

fn list(place: &Where) -> Result<()> {
    let registry = Registry::discover(&place.paths)?;
    if place.json {
        return output::json(&json!({
            "components": registry.components().map(component_json).collect::<Vec<_>>(),
            "refused": registry.refused().iter().map(|refused| json!({
                "path": refused.path, "reason": refused.reason,
            })).collect::<Vec<_>>(),
            "searched": registry.places().iter().map(|place| &place.path).collect::<Vec<_>>(),
        }));
    }
    let mut rows = vec![
        ["KIND", "NAME", "PLUGIN", "VERSION", "PROTOCOL", "LIBTORCH", "SHA-256", "FILE"].map(str::to_owned).to_vec(),
    ];
    rows.extend(registry.components().map(|entry| {
        let mut row = vec![entry.kind.to_string(), entry.name.clone()];
        row.extend(match &entry.provider {
            Provider::Program => {
                let host = Header::of_host();
                let (protocol, libtorch) = (host.protocol().to_string(), or_none(host.libtorch()));
                let [name, none, file] = ["linked in", "-", "this program"].map(str::to_owned);
                [name, host.version().to_owned(), protocol, libtorch, none, file]
            }
            Provider::Plugin(file) => {
                let header = file.header();
                let [name, version, libtorch] =
                    [header.name().to_owned(), header.version().to_owned(), or_none(header.libtorch())];
                let path = file.path.display().to_string();
                [name, version, header.protocol().to_string(), libtorch, short(&file.sha256), path]
            }
        });
        row
    }));
    let mut text = if rows.len() > 1 { output::columns(&rows) } else { "no components were found".to_owned() };
    for place in registry.places() {
        let missing = if place.path.exists() { "" } else { " (not there)" };
        text += &format!("\nlooked in {}{missing}", place.path.display());
    }
    for refused in registry.refused() {
        text += &format!("\nrefused {}: {}", refused.path.display(), refused.reason);
    }
    output::text(&text)
}

fn inspect(entry: &Entry, as_json: bool) -> Result<()> {
    if as_json {
        return output::json(&component_json(entry));
    }
    let view = SchemaView::new(&entry.schema);
    let mut text = format!("{} `{}`\n", entry.kind, entry.name);
    if let Some(doc) = view.doc() {
        text += &format!("{}\n", indented(doc));
    }
    text += &match &entry.provider {
        Provider::Program => "\nlinked into this program\n".to_owned(),
        Provider::Plugin(file) => {
            let header = file.header();
            let rows = [
                ("plugin", format!("{} {}", header.name(), header.version())),
                ("file", file.path.display().to_string()),
                ("sha256", file.sha256.clone()),
                ("protocol", header.protocol().to_string()),
                ("sdk", or_none(header.sdk())),
                ("rustc", or_none(header.rustc())),
                ("libtorch", or_none(header.libtorch())),
                ("target", header.target().to_owned()),
            ];
            let rows: Vec<_> = rows.map(|(name, value)| vec![format!("  {name}"), value]).to_vec();
            format!("\n{}\n", output::columns(&rows))
        }
    };
    text += if view.keys(None).is_empty() { "\nno keys\n" } else { "\nkeys\n" };
    describe_keys(&mut text, view, 1);
    output::text(&text)
}

/// The keys of a table, and of the tables in it.
fn describe_keys(text: &mut String, view: SchemaView<'_>, depth: usize) {
    let margin = "  ".repeat(depth);
    for key in view.keys(None) {
        let Some(child) = view.child(key, None) else { continue };
        let default = match child.default() {
            Some(value) => format!(", default {value}"),
            None if view.requires(key) => ", required".to_owned(),
            None => String::new(),
        };
        *text += &format!("{margin}{key}: {}{default}\n", child.type_text());
        for line in child.doc().into_iter().flat_map(str::lines) {
            *text += &format!("{margin}  {line}\n");
        }
        // A schema may contain itself; nobody nests tables this deep.
        if depth < 4 {
            describe_keys(text, child, depth + 1);
        }
    }
}

fn component_json(entry: &Entry) -> Json {
    let plugin = match &entry.provider {
        Provider::Program => Json::Null,
        Provider::Plugin(file) => {
            let header = file.header();
            json!({
                "name": header.name(), "version": header.version(), "path": file.path, "sha256": file.sha256,
                "protocol": header.protocol().to_string(), "sdk": header.sdk(), "rustc": header.rustc(),
                "libtorch": header.libtorch(), "target": header.target(),
            })
        }
    };
    json!({ "kind": entry.kind, "name": entry.name, "plugin": plugin, "schema": entry.schema })
}

fn or_none(text: &str) -> String {
    if text.is_empty() { "none".to_owned() } else { text.to_owned() }
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}
