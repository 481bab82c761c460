//! What the user sees: lines, steps that take a while, tables. Colour and moving parts only on a terminal.

use std::{
    io::{IsTerminal, Write, stdout},
    time::Instant,
};

/// Prints a line. A reader that went away (`| head`) is no failure.
pub(crate) fn say(line: &str) {
    writeln!(stdout(), "{line}").ok();
}

/// Prints an error.
pub(crate) fn complain(line: &str) {
    writeln!(std::io::stderr(), "{} {line}", paint("31", "error:", std::io::stderr().is_terminal())).ok();
}

/// Prints what is no error and yet not what was wanted, beside what was asked for.
pub(crate) fn caution(line: &str) {
    writeln!(std::io::stderr(), "{} {line}", paint("33", "warning:", std::io::stderr().is_terminal())).ok();
}

/// A heading.
pub(crate) fn heading(text: &str) {
    say(&format!("\n{}", paint("1", text, stdout().is_terminal())));
}

/// A step that was observed to be so.
pub(crate) fn good(text: &str) {
    say(&format!("  {} {text}", paint("32", "✓", stdout().is_terminal())));
}

/// A step that was observed not to be as it should.
pub(crate) fn bad(text: &str) {
    say(&format!("  {} {text}", paint("31", "✗", stdout().is_terminal())));
}

/// A step that was observed to be doubtful.
pub(crate) fn warn(text: &str) {
    say(&format!("  {} {text}", paint("33", "!", stdout().is_terminal())));
}

/// Something worth knowing.
pub(crate) fn note(text: &str) {
    say(&format!("    {text}"));
}

fn paint(colour: &str, text: &str, terminal: bool) -> String {
    if terminal { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
}

/// Steps of something that takes seconds: each is shown before it is taken, with the time since the first.
pub(crate) struct Progress {
    begun: Instant,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { begun: Instant::now() }
    }

    pub(crate) fn step(&self, what: &str) {
        say(&format!("  {:>5.1} s  {what}", self.begun.elapsed().as_secs_f32()));
    }
}

/// Prints columns as wide as their widest cell.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) {
    let head: Vec<String> = head.iter().map(|&cell| cell.to_owned()).collect();
    let all = || std::iter::once(&head).chain(rows);
    let width = |column: usize| all().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    for row in all() {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = width(column).unwrap_or_default();
            format!("{cell:<width$}")
        });
        say(cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}
