//! The plugin keeps its contract with the host: what `advdmd check` checks, from `cargo test`.

advdmd_conformance::reward!("colorfulness");
