//! Charts as SVG text that takes its colours from the page's style.

mod axis;
mod chart;
mod number;
mod series;

pub use axis::Scale;
pub use chart::{Band, Chart, Colours, Domain, Reference, Strip};
pub use number::{grouped, number};
pub use series::Series;
