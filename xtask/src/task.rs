//! The commands, one file each.

pub mod bench;
pub mod build;
pub mod fuzz;
pub mod program;
pub mod setup;
pub mod test;
