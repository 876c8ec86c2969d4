//! What the program prints: results on standard output, errors on standard error.

use std::fmt::Display;
use std::io::Write as _;
use std::process::ExitCode;

/// Prints a line of output. A reader that has gone away is not an error worth a panic.
pub fn line(text: impl Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Prints an error with its causes and gives the exit status for it.
pub fn fail(error: &anyhow::Error) -> ExitCode {
    let mut err = std::io::stderr().lock();
    let _ = write!(err, "error: {error}");
    let mut last = error.to_string();
    for cause in error.chain().skip(1) {
        // Many errors repeat their source in their own text.
        let cause = cause.to_string();
        if !last.contains(&cause) {
            let _ = write!(err, ": {cause}");
        }
        last = cause;
    }
    let _ = writeln!(err);
    ExitCode::FAILURE
}
