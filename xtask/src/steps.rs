//! Steps that are announced, timed and summed up; the first that fails ends the run.

use anyhow::{Context, Result, anyhow};
use std::fmt::Write;
use std::process::Command;
use std::time::{Duration, Instant};

/// The steps so far.
#[derive(Default)]
pub struct Steps {
    done: Vec<Step>,
}

struct Step {
    name: &'static str,
    time: Duration,
    passed: bool,
}

impl Steps {
    /// Runs a command; an error holds the line that runs it again.
    pub fn command(&mut self, name: &'static str, command: &mut Command) -> Result<()> {
        let line = shell_line(command);
        self.run(name, &line, || {
            let status = command.status().context("it does not start")?;
            if status.success() { Ok(()) } else { Err(anyhow!("{status}")) }
        })
    }

    /// Runs a step of our own, which `line` runs again.
    pub fn run(&mut self, name: &'static str, line: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        eprintln!("\n=== {name}: {line}");
        let start = Instant::now();
        let result = work();
        self.done.push(Step { name, time: start.elapsed(), passed: result.is_ok() });
        result.map_err(|error| {
            eprintln!("\n{}", self.summary());
            anyhow!("{name} failed ({error:#}). Run it again with:\n  {line}")
        })
    }

    /// One line for each step, and the total.
    pub fn summary(&self) -> String {
        let width = self.done.iter().map(|step| step.name.len()).max().unwrap_or(0).max("total".len());
        let mut text = String::new();
        let mut line = |name: &str, time: Duration, mark: &str| {
            writeln!(text, "{name:width$}  {:>8.1} s  {mark}", time.as_secs_f64()).expect("a string takes text");
        };
        for step in &self.done {
            line(step.name, step.time, if step.passed { "ok" } else { "FAILED" });
        }
        line("total", self.done.iter().map(|step| step.time).sum(), "");
        text.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
    }
}

/// The command as one types it at the root of the repository: its own variables, the program's name, its arguments.
fn shell_line(command: &Command) -> String {
    let variables = command
        .get_envs()
        .filter_map(|(name, value)| Some(format!("{}={}", name.to_string_lossy(), quoted(&value?.to_string_lossy()))));
    let program = std::path::Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy();
    let arguments = command.get_args().map(|argument| quoted(&argument.to_string_lossy()));
    let words: Vec<_> = variables.chain([program.into_owned()]).chain(arguments).collect();
    words.join(" ")
}

fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_says_how_to_run_it_again() {
        let mut steps = Steps::default();
        steps.command("good", &mut Command::new("true")).unwrap();
        let mut command = Command::new("/usr/bin/env");
        command.args(["sh", "-c", "exit 3"]).env("FLAGS", "-D warnings").env_remove("OTHER");
        let error = steps.command("bad", &mut command).unwrap_err().to_string();
        assert!(error.starts_with("bad failed"), "{error}");
        assert!(error.ends_with("\n  FLAGS='-D warnings' env sh -c 'exit 3'"), "{error}");
        let marks: Vec<_> =
            steps.summary().lines().map(|line| line.split_whitespace().last().unwrap().to_owned()).collect();
        assert_eq!(marks, ["ok", "FAILED", "s"]);
    }

    #[test]
    fn words_are_quoted_where_a_shell_needs_it() {
        assert_eq!(quoted("--json=x.y"), "--json=x.y");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
