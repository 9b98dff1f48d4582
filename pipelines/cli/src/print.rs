//! What the command prints: `println!` and `eprintln!` of every module.
//!
//! They differ from those of the standard library in two ways. What files say about themselves can hold sequences that
//! clear the screen, forge its title or turn text around: such characters are escaped, here and nowhere else. And a disk
//! that is full, behind a redirection, does not end the work in a panic: it goes on, and the program fails at its end.

use std::fmt::{Arguments, Write as _};
use std::io::{self, Write};
use std::sync::OnceLock;

macro_rules! println {
    ($($part:tt)*) => { $crate::print::output(format_args!($($part)*)) };
}
macro_rules! eprintln {
    ($($part:tt)*) => { $crate::print::error(format_args!($($part)*)) };
}

/// Why the output is not complete.
static FAILED: OnceLock<io::Error> = OnceLock::new();

/// A line on standard output.
pub(crate) fn output(line: Arguments<'_>) {
    let written = io::stdout().lock().write_all(terminal(&format!("{line}\n")).as_bytes());
    keep(written);
}

/// A line on standard error; where that cannot be written there is nobody to tell.
pub(crate) fn error(line: Arguments<'_>) {
    let _ = io::stderr().lock().write_all(terminal(&format!("{line}\n")).as_bytes());
}

/// Fails if anything of the output was lost.
pub(crate) fn finish() -> Result<(), &'static io::Error> {
    keep(io::stdout().lock().flush());
    FAILED.get().map_or(Ok(()), Err)
}

fn keep(written: io::Result<()>) {
    if let Err(error) = written {
        let _ = FAILED.set(error);
    }
}

/// Text with every character escaped that a terminal obeys instead of showing, but for new lines and tabs. It is escaped as
/// in JSON, so that a line of JSON means the same as before.
pub(crate) fn terminal(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        let obeyed = match c {
            '\n' | '\t' => false,
            // Of directions, which turn what follows around, and of lines.
            '\u{61c}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}' => true,
            c => c.is_control(),
        };
        match obeyed {
            true => write!(safe, "\\u{:04x}", u32::from(c)).expect("texts take everything"),
            false => safe.push(c),
        }
    }
    safe
}

/// A name from a file, on one line.
pub(crate) fn name(text: &str) -> String {
    terminal(text).replace('\n', "\\n").replace('\t', "\\t")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_escaped() {
        let hostile = "\u{1b}[2J\u{1b}]0;owned\u{7} \u{9b}31m a\rb \u{202e}txt\u{7f}";
        let safe = terminal(hostile);
        assert!(safe.chars().all(|c| !c.is_control()), "{safe}");
        assert!(safe.starts_with(r"\u001b[2J\u001b]0;owned\u0007"), "{safe}");
        assert_eq!(terminal("naïve 🦊\n\tnext"), "naïve 🦊\n\tnext");
        assert_eq!(name("a\nb"), r"a\nb");
        // In JSON the same text comes back.
        let json = terminal(&serde_json::json!(hostile).to_string());
        assert_eq!(serde_json::from_str::<String>(&json).expect("JSON"), hostile);
    }
}
