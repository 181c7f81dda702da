//! What commands write: answers to standard output, complaints to standard error.

use std::io::Write;

/// Writes to standard output. A reader that has gone is no error of ours.
pub(crate) fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).ok();
}

/// Writes to standard error.
pub(crate) fn complain(text: &str) {
    let mut err = std::io::stderr().lock();
    err.write_all(text.as_bytes()).ok();
}
