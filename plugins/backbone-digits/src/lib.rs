//! The backbone `digits`: SD3's MMDiT at toy size on scenes of handwritten digits, in pixel space.
//!
//! Small enough to be trained, distilled and sampled on two CPU cores, and of the same architecture, weight names and
//! conventions as the real thing. A scene is 16x16 RGB; a caption has at most eight words out of 26, and the text
//! "encoder" is a fixed one-hot embedding ([`text`]).

mod backbone;
mod config;
mod model;
pub mod text;

pub use backbone::Digits;
pub use config::{Architecture, DigitsConfig, InitFrom};
pub use model::Model;

advdmd_sdk::register_backbone!("digits", DigitsConfig);
advdmd_sdk::export_plugin!();
