//! `advdmd recipes`: the presets.

use advdmd::config::recipe::{RECIPES, Recipe};
use advdmd::{Error, Result};
use clap::Subcommand;

use super::output;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the presets
    List,
    /// Print a preset, with the source of each number
    Show {
        /// Name of the preset
        name: String,
    },
}

pub fn run(command: Command) -> Result<()> {
    match command {
        Command::List => {
            let entry = |recipe: &Recipe| format!("{}\n{}", recipe.name, output::wrapped(&recipe.summary(), 2));
            output::text(&RECIPES.iter().map(entry).collect::<Vec<_>>().join("\n"))
        }
        Command::Show { name } => output::text(Recipe::named(&name).ok_or_else(|| unknown(&name))?.text),
    }
}

fn unknown(name: &str) -> Error {
    let names: Vec<_> = RECIPES.iter().map(|recipe| recipe.name).collect();
    let near = advdmd::config::nearest(name, names.iter().copied()).map(|near| format!("did you mean `{near}`?"));
    Error::usage(format!("no recipe `{name}`; there are {}", names.join(", ")), near)
}
