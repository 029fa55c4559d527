//! The reward against servers in this process.

mod faults;
mod scores;
mod server;
