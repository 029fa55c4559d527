//! The conformance kit on a component that the registry finds.

use std::path::Path;

use advdmd::config::Component;
use advdmd::registry::{Provider, Registry};
use advdmd::score::Chosen;
use advdmd::{Error, Result, files};
use advdmd_conformance::{Report, Subject, check, check_file};
use advdmd_sdk::Kind;

use super::ReportArgs;
use crate::cli::model_args::BackboneArgs;
use crate::cli::output;

/// Checks a component that is named with its keys in one text.
pub fn of_text(kind: Kind, text: &str, args: &ReportArgs) -> Result<()> {
    let Chosen { mut component, .. } = Chosen::parse_given("", text)?;
    let registry = Registry::discover(&args.plugin_paths)?;
    registry.resolve_component(kind, &mut component)?;
    examine(&registry, kind, &component, args)
}

/// Checks a backbone of the options that all commands have.
pub fn of_backbone(backbone: &BackboneArgs, args: &ReportArgs) -> Result<()> {
    let registry = Registry::discover(&args.plugin_paths)?;
    examine(&registry, Kind::Backbone, &backbone.component(&registry)?, args)
}

fn examine(registry: &Registry, kind: Kind, component: &Component, args: &ReportArgs) -> Result<()> {
    let Component { r#type, options } = component;
    let table = options.clone().into();
    let report: Report = match &registry.entry(kind, r#type)?.provider {
        Provider::Plugin(file) => check_file(&file.path, kind, r#type, &table),
        Provider::Program => check(&Subject::linked(kind, r#type, &table)),
    };
    match &args.json {
        Some(path) if path.as_path() == Path::new("-") => output::json(&report)?,
        other => {
            output::text(&report.to_string())?;
            if let Some(path) = other {
                files::write_json(path, &report)?;
            }
        }
    }
    let failed = report.failed().count();
    if failed > 0 {
        let all = report.checks.len();
        return Err(Error::failed(format!("{kind} `{}` fails {failed} of {all} checks", component.r#type)));
    }
    tracing::info!("{kind} `{}` keeps its contract", component.r#type);
    Ok(())
}
