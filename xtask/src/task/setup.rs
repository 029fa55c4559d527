//! `cargo xtask setup`

use crate::libtorch;
use crate::project::Project;
use anyhow::Result;

pub fn run(project: &Project) -> Result<()> {
    let found = libtorch::setup(project)?;
    eprintln!("libtorch {} {}; plain cargo finds it through .libtorch", libtorch::VERSION, found.source);
    println!("{}", found.folder.display());
    Ok(())
}
