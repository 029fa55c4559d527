//! The documents keep their word: every command in them runs, every file parses, every link leads somewhere.
//!
//! A block `console` is run line by line after `$ `, all blocks of a chapter in one shell and one empty folder; its other lines are
//! parts of what the command says, `...` standing for anything. A block whose first line is a comment with a file's name is
//! written to that file first. `<!-- run: COMMAND -->` is run and not shown; `<!-- elsewhere: FILE -->` before a block names
//! the test that runs the like of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use advdmd_tests::{Installation, PLUGINS, repository};

fn book() -> PathBuf {
    repository().join("docs/src")
}

/// A part of a chapter that something is done with.
#[derive(Debug)]
enum Part {
    Run(Vec<Step>),
    Write { name: String, text: String },
}

/// A command, and what it has to say.
#[derive(Debug)]
struct Step {
    command: String,
    says: Vec<String>,
}

struct Block {
    language: String,
    lines: Vec<String>,
    /// The comment in the line before it.
    comment: Option<String>,
}

/// The fenced blocks of a chapter, and its hidden commands as blocks of the language `hidden`.
fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let (mut open, mut comment): (Option<Block>, Option<String>) = (None, None);
    for line in text.lines() {
        if let Some(mut block) = open.take() {
            if line == "```" {
                blocks.push(block);
            } else {
                block.lines.push(line.to_owned());
                open = Some(block);
            }
        } else if let Some(language) = line.strip_prefix("```") {
            open = Some(Block { language: language.to_owned(), lines: Vec::new(), comment: comment.take() });
        } else if let Some(hidden) = line.strip_prefix("<!-- ").and_then(|line| line.strip_suffix(" -->")) {
            match hidden.strip_prefix("run: ") {
                Some(command) => blocks.push(Block {
                    language: "hidden".to_owned(),
                    lines: vec![format!("$ {command}")],
                    comment: None,
                }),
                None => comment = Some(hidden.to_owned()),
            }
        } else {
            comment = None;
        }
    }
    assert!(open.is_none(), "a block is not closed");
    blocks
}

fn steps(lines: &[String]) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for line in lines {
        match (line.strip_prefix("$ "), steps.last_mut()) {
            (Some(command), _) => {
                // What follows two spaces and a `#` is for the reader.
                let command = command.split("  #").next().unwrap_or(command).trim_end().to_owned();
                steps.push(Step { command, says: Vec::new() });
            }
            (None, Some(step)) => step.says.push(line.clone()),
            (None, None) => panic!("{line:?} follows no command"),
        }
    }
    steps
}

fn parts(text: &str) -> Vec<Part> {
    let part = |block: Block| match block.language.as_str() {
        "console" | "hidden" => {
            match block.comment.as_deref().and_then(|comment| comment.strip_prefix("elsewhere: ")) {
                Some(file) => {
                    assert!(repository().join(file).exists(), "{file} does not exist");
                    None
                }
                None => Some(Part::Run(steps(&block.lines))),
            }
        }
        language => {
            let first = block.lines.first()?;
            let name = first.strip_prefix("# ").or_else(|| first.strip_prefix("// "))?;
            let named = !name.contains(' ') && Path::new(name).extension().is_some();
            let text = block.lines.join("\n") + "\n";
            if language == "toml" {
                text.parse::<toml::Table>().unwrap_or_else(|error| panic!("{error} in\n{text}"));
            }
            named.then(|| Part::Write { name: name.to_owned(), text })
        }
    };
    blocks(text).into_iter().filter_map(part).collect()
}

/// One shell script for a chapter: each command's output follows a line with its number.
fn script(parts: &[Part]) -> (String, Vec<&Step>) {
    let (mut script, mut steps) = (String::from("exec 2>&1\nset -e\n"), Vec::new());
    for part in parts {
        match part {
            Part::Write { name, text } => {
                script += &format!("mkdir -p \"$(dirname {name})\"\ncat > {name} <<'END_OF_FILE'\n{text}END_OF_FILE\n");
            }
            Part::Run(run) => {
                for step in run {
                    script += &format!("echo '@@@ {}'\n{}\n", steps.len(), step.command);
                    steps.push(step);
                }
            }
        }
    }
    (script + "echo '@@@ end'\n", steps)
}

/// Whether `line` occurs in `output`, `...` standing for anything.
fn occurs(line: &str, output: &str) -> bool {
    output.lines().any(|found| {
        let mut rest = found;
        line.trim().split("...").all(|part| match rest.split_once(part.trim()) {
            Some((_, after)) => {
                rest = after;
                true
            }
            None => false,
        })
    })
}

fn run_chapter(name: &str) {
    let text = std::fs::read_to_string(book().join(name)).unwrap();
    let parts = parts(&text);
    let (script, steps) = script(&parts);
    if steps.is_empty() {
        return;
    }
    let installed = Installation::with(&PLUGINS);
    let folder = installed.folder().join("chapter");
    std::fs::create_dir(&folder).unwrap();
    // The environment of the program, for a shell.
    let mut command = Command::new("bash");
    for (variable, value) in installed.command(&[]).get_envs() {
        match value {
            Some(value) => command.env(variable, value),
            None => command.env_remove(variable),
        };
    }
    let path = std::env::join_paths(
        [installed.folder().to_owned()].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    command.args(["-c", &script]).current_dir(&folder).env("PATH", path.unwrap()).env("REPOSITORY", repository());
    // What cargo tells a test about itself is not for a cargo within.
    command.env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS").env_remove("CARGO_MANIFEST_DIR");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{name}: {:?}\n{said}", output.status);
    for (index, step) in steps.iter().enumerate() {
        let begin = said.split_once(&format!("@@@ {index}\n")).unwrap().1;
        let own = begin.split("@@@ ").next().unwrap();
        for line in &step.says {
            assert!(occurs(line, own), "{name}: `{}` does not say {line:?}, but:\n{own}", step.command);
        }
    }
}

/// The chapters, in the order of the summary.
fn chapters() -> Vec<String> {
    let summary = std::fs::read_to_string(book().join("SUMMARY.md")).unwrap();
    summary.lines().filter_map(|line| Some(line.split_once("](")?.1.split_once(')')?.0.to_owned())).collect()
}

#[test]
fn every_document_is_a_chapter() {
    let files: BTreeSet<String> = std::fs::read_dir(book())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "md") && !path.ends_with("SUMMARY.md"))
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(chapters().into_iter().collect::<BTreeSet<_>>(), files);
}

#[test]
fn nothing_is_left_to_be_filled_in() {
    for chapter in chapters() {
        let text = std::fs::read_to_string(book().join(&chapter)).unwrap();
        let shouted = |line: &&str| line.len() > 2 && line.chars().all(|letter| letter.is_ascii_uppercase());
        assert_eq!(text.lines().find(shouted), None, "{chapter}");
    }
}

#[test]
fn every_link_leads_somewhere() {
    let tree = "https://github.com/advdmd/advdmd/tree/main/";
    for chapter in chapters() {
        let text = std::fs::read_to_string(book().join(&chapter)).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap();
            let path = match file.strip_prefix(tree) {
                Some(path) => repository().join(path),
                None if file.contains("://") || file.is_empty() => continue,
                None => book().join(file),
            };
            assert!(path.exists(), "{chapter}: {target} does not exist");
        }
    }
}

/// One test a chapter, so that they run side by side; the last sees to it that none is forgotten.
macro_rules! chapters {
    ($($test:ident: $file:literal),* $(,)?) => {
        $(
            #[test]
            fn $test() {
                run_chapter($file);
            }
        )*

        #[test]
        fn every_chapter_is_run() {
            assert_eq!(BTreeSet::from([$($file.to_owned()),*]), chapters().into_iter().collect());
        }
    };
}

chapters! {
    introduction: "introduction.md",
    first_reward: "first-reward.md",
    needs: "needs.md",
    learners: "learners.md",
    samplers: "samplers.md",
    backbones: "backbones.md",
    abi: "abi.md",
    isolation: "isolation.md",
    trust: "trust.md",
    editor: "editor.md",
    rewards: "rewards.md",
    performance: "performance.md",
}
