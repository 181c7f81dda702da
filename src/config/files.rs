//! Reads files that are not trusted: bounded in size, and never through links that lead outside.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, fcntl_setfl};

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("larger than {0} KiB")]
    TooLarge(usize),
    #[error("not UTF-8")]
    NotText,
    #[error("it points outside the folder it must stay in")]
    Outside,
    #[error("not a regular file")]
    NotAFile,
}

/// Reads a text of bounded size.
pub(super) fn read(path: &Path, bytes_max: usize) -> Result<String, Error> {
    let mut bytes = Vec::new();
    open(path)?.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > bytes_max {
        return Err(Error::TooLarge(bytes_max >> 10));
    }
    String::from_utf8(bytes).map_err(|_| Error::NotText)
}

/// Opens a file. A pipe that nobody writes to is empty: opening it in the usual way would wait until somebody does.
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)?;
    // Reading waits for a writer that is there.
    fcntl_setfl(&file, OFlags::empty())?;
    Ok(file)
}

/// The true path of a regular file that lies below a folder, links followed.
pub(super) fn below(folder: &Path, relative: &Path) -> Result<PathBuf, Error> {
    let folder = folder.canonicalize()?;
    let path = folder.join(relative).canonicalize()?;
    if !path.starts_with(&folder) {
        return Err(Error::Outside);
    }
    if path.is_file() { Ok(path) } else { Err(Error::NotAFile) }
}
