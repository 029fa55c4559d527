//! Distils text-to-image diffusion models into few-step ones with DMD and GRPO.

pub mod cache;
pub mod config;
pub mod convert;
pub mod data;
pub mod device;
pub mod digests;
pub mod digits;
pub mod error;
pub mod eval;
pub mod export;
pub mod files;
pub mod hacking;
pub mod hub;
pub mod interrupt;
pub mod jsonl;
pub mod metrics;
pub mod model;
pub mod objective;
pub mod parity;
pub mod passes;
pub mod picture;
pub mod pipeline;
pub mod plan;
pub mod png;
pub mod pretrain;
pub mod progress;
pub mod prompt_file;
pub mod prompts;
pub mod random;
pub mod registry;
pub mod report;
pub mod sampling;
pub mod scaffold;
pub mod score;
pub mod train;

pub use error::{Error, Result};
