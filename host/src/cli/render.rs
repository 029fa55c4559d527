//! Errors on the terminal: what is wrong, where it stands, what to do.

use std::error::Error as _;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};

use advdmd::Error;
use advdmd::error::{Fault, Place};

/// Writes an error to stderr.
pub fn error(error: &Error) {
    let text = rendered(error, Style::of_stderr());
    // Without stderr there is nobody left to tell.
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// Colours, or none.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    colour: bool,
}

impl Style {
    /// Colours where stderr is a terminal and `NO_COLOR` is not set.
    pub fn of_stderr() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { colour: std::io::stderr().is_terminal() && !refused }
    }

    /// `text` in the ANSI style `code`.
    pub fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn heading(self, code: &str, word: &str) -> String {
        format!("{}{}", self.paint(code, word), self.paint("1", ":"))
    }
}

/// The text of an error, with its causes, excerpts and hints.
fn rendered(error: &Error, style: Style) -> String {
    let mut text = String::new();
    match error {
        Error::Config(faults) => {
            for (index, fault) in faults.iter().enumerate() {
                text.push_str(if index == 0 { "" } else { "\n" });
                write_fault(&mut text, fault, style);
            }
            if faults.len() > 1 {
                text.push('\n');
                let _ =
                    writeln!(text, "{} {} faults in the configuration", style.heading("1;31", "error"), faults.len());
            }
        }
        Error::Usage { message, hint } => {
            let _ = writeln!(text, "{} {message}", style.heading("1;31", "error"));
            write_hint(&mut text, hint.as_deref(), style);
        }
        other => {
            let _ = writeln!(text, "{} {other}", style.heading("1;31", "error"));
            let mut cause = other.source();
            while let Some(source) = cause {
                let _ = writeln!(text, "  caused by: {}", source.to_string().replace('\n', "\n    "));
                cause = source.source();
            }
        }
    }
    text
}

fn write_fault(text: &mut String, fault: &Fault, style: Style) {
    let _ = writeln!(text, "{} {}", style.heading("1;31", "error"), fault.message);
    if let Some(place) = &fault.place {
        write_place(text, place, style);
    }
    write_hint(text, fault.hint.as_deref(), style);
}

fn write_place(text: &mut String, place: &Place, style: Style) {
    let number = place.excerpt.as_ref().map_or_else(|| " ".to_owned(), |at| at.line.to_string());
    let margin = " ".repeat(number.len());
    let _ = writeln!(text, "{margin}{} {place}", style.paint("1;34", "-->"));
    let Some(at) = &place.excerpt else { return };
    let bar = style.paint("1;34", "|");
    // Tabs stay tabs under the caret, so that it stands below its word.
    let before = at.text.chars().take(at.column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect::<String>();
    let _ = writeln!(text, "{margin} {bar}");
    let _ = writeln!(text, "{} {bar} {}", style.paint("1;34", &number), at.text);
    let _ = writeln!(text, "{margin} {bar} {before}{}", style.paint("1;31", &"^".repeat(at.width)));
}

fn write_hint(text: &mut String, hint: Option<&str>, style: Style) {
    if let Some(hint) = hint {
        let _ = writeln!(text, "{} {hint}", style.heading("1;36", "hint"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use advdmd::error::Excerpt;

    #[test]
    fn a_fault_shows_its_line_and_a_hint() {
        let excerpt = Excerpt { line: 12, column: 1, width: 6, text: "grups = 4".to_owned() };
        let place = Place { source: "run.toml".to_owned(), excerpt: Some(excerpt) };
        let fault = Fault {
            message: "unknown key `batch.grups`".to_owned(),
            place: Some(place),
            hint: Some("did you mean `groups`?".to_owned()),
        };
        let text = rendered(&Error::Config(vec![fault]), Style { colour: false });
        let expected = "error: unknown key `batch.grups`\n  --> run.toml:12:1\n   |\n12 | grups = 4\n   | ^^^^^^\nhint: did you mean `groups`?\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn causes_follow_the_error() {
        let source = std::io::Error::other("disk full");
        let error = Error::File { action: "write", path: "out/config.toml".into(), source };
        let text = rendered(&error, Style { colour: false });
        assert_eq!(text, "error: cannot write out/config.toml\n  caused by: disk full\n");
    }
}
