//! The report of a run: one HTML file that needs neither a network nor a server.
//!
//! [`write()`] reads a run's folder (`metrics.jsonl`, `eval.jsonl`, `samples/`, `config.toml`, `run.json`) and writes
//! `report.html` into it. Parts that are missing are named in the report; none of them is needed.

mod catalogue;
mod cost;
mod gallery;
mod notes;
mod page;
mod panels;
mod run;
mod samples;
mod svg;
mod verdict;

use std::path::{Path, PathBuf};

pub use samples::{SampleRow, samples_of, write_samples};

use crate::{Result, files};

/// Writes `run/report.html` anew and returns its path.
///
/// # Errors
/// The folder cannot be read, or the file not be written.
pub fn write(run: &Path) -> Result<PathBuf> {
    let path = run.join("report.html");
    files::write(&path, page::render(&run::Run::read(run)?)?.as_bytes())?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;
    use crate::eval::tests::scores;
    use crate::eval::{Entry, Subject};
    use crate::jsonl::Log;
    use crate::metrics::{Record, Writer};

    fn report(folder: &Path) -> String {
        std::fs::read_to_string(write(folder).unwrap()).unwrap()
    }

    /// A run of three updates with two evaluations, `student` being its last score.
    fn run(folder: &Path, student: f64) {
        let mut metrics = Writer::open(&folder.join("metrics.jsonl"), 0).unwrap();
        for update in 1..=3 {
            let names = ["dmd/loss", "critic/heads/accuracy/step0", "grpo/gate/step0", "time/critic", "mine/<number>"];
            let mut values: std::collections::BTreeMap<_, _> = names.map(|name| (name.to_owned(), 0.5)).into();
            values.insert("gan/loss".into(), if update == 2 { f64::NAN } else { 0.7 });
            metrics.append(&Record { update, seconds: update as f64, values }).unwrap();
        }
        let entry = |update, subject, share| Entry {
            update,
            label: format!("{subject:?}").to_lowercase(),
            subject,
            sampler: "euler".into(),
            steps: 4,
            guidance_scale: 1.0,
            evaluations: 4,
            scores: scores(share, 2.0, 1.0),
        };
        let mut log = Log::open::<Entry>(&folder.join("eval.jsonl"), 0).unwrap();
        for entry in
            [entry(0, Subject::Teacher, 0.6), entry(0, Subject::Student, 0.3), entry(3, Subject::Student, student)]
        {
            log.append(&entry).unwrap();
        }
        let images = Tensor::zeros([2, 3, 16, 16], (Kind::Float, Device::Cpu));
        let row = |label, subject| SampleRow { label, subject, images: &images, verdicts: None };
        for update in [0, 3] {
            let rows = [row("teacher", Subject::Teacher), row("student", Subject::Student)];
            write_samples(folder, update, &["a <7>", "a 3"], &rows).unwrap();
        }
        let config = "recipe = \"advdmd\"\n[schedule]\nupdates = 3\n[objective.grpo]\naccuracy_gate = [0.55, 0.95]\n";
        files::write(&folder.join("config.toml"), config.as_bytes()).unwrap();
        files::write(
            &folder.join("run.json"),
            br#"{"advdmd":"0.1.0","components":[{"key":"backbone","name":"digits"}]}"#,
        )
        .unwrap();
    }

    #[test]
    fn an_empty_run_says_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let html = report(folder.path());
        for part in ["No verdict", "metrics.jsonl is not there", "eval.jsonl is not there", "samples is not there"] {
            assert!(html.contains(part), "{part:?} in\n{html}");
        }
        assert!(write(&folder.path().join("nowhere")).is_err());
    }

    #[test]
    fn a_damaged_part_is_named_and_the_rest_is_shown() {
        let folder = tempfile::tempdir().unwrap();
        run(folder.path(), 0.8);
        std::fs::write(folder.path().join("eval.jsonl"), "{}\n{}\n").unwrap();
        std::fs::write(folder.path().join("samples/update-000000.png"), "no image").unwrap();
        let html = report(folder.path());
        for part in ["eval.jsonl cannot be used", "line 1", "samples cannot be used", "Distribution matching"] {
            assert!(html.contains(part), "{part:?} in\n{html}");
        }
    }

    #[test]
    fn a_run_is_shown_whole_and_offline() {
        let folder = tempfile::tempdir().unwrap();
        run(folder.path(), 0.8);
        let html = report(folder.path());
        let parts = [
            "Better than its teacher at 4 steps",
            "Protocol: digits v1",
            "Discriminator accuracy: heads",
            "policy gradient may be on",
            "Not finite: gan/loss (1 times, first at update 2)",
            "mine/&#60;number&#62;",
            "a &#60;7&#62;",
            "data:image/png;base64,",
            "accuracy_gate = [0.55, 0.95]",
            "key backbone · name digits",
        ];
        for part in parts {
            assert!(html.contains(part), "{part:?} in\n{html}");
        }
        for outside in ["http://", "https://", "src=\"/", "url(", "@import", "NaN", "<7>"] {
            assert!(!html.contains(outside), "{outside:?} in\n{html}");
        }
    }

    #[test]
    fn a_student_that_lost_is_called_worse() {
        let folder = tempfile::tempdir().unwrap();
        run(folder.path(), 0.4);
        assert!(report(folder.path()).contains("Worse than its teacher at 4 steps"));
    }
}
