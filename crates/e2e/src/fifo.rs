//! A named pipe by which a job and a test tell each other that it is time.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::deadline::{DEADLINE, Deadline};
use crate::fail;

/// A named pipe. Opening it blocks neither side, because the test holds both of its ends.
#[derive(Debug)]
pub struct Fifo {
    path: PathBuf,
    file: File,
}

impl Fifo {
    pub(crate) fn new(path: PathBuf) -> Self {
        let made = mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0);
        made.expect("the test's directory can be written");
        let file = File::options().read(true).write(true).open(&path);
        Self { path, file: file.expect("it was just made") }
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its path for a shell; the rig's paths need no quotes.
    #[must_use]
    pub fn word(&self) -> &str {
        self.path.to_str().expect("the rig's paths are UTF-8")
    }

    /// Lets whoever reads a line of it go on.
    ///
    /// # Panics
    /// It can't be written.
    pub fn release(&self) {
        (&self.file).write_all(b"go\n").expect("a pipe has room for a line");
    }

    /// The next line that somebody writes, without the newline.
    ///
    /// # Panics
    /// None comes within [`DEADLINE`].
    #[track_caller]
    #[must_use]
    pub fn line(&self) -> String {
        let deadline = Deadline::after(DEADLINE);
        let mut line = Vec::new();
        loop {
            if !deadline.readable(&self.file) {
                fail(&format!("nobody writes to {}", self.path.display()));
            }
            let mut byte = [0];
            (&self.file).read_exact(&mut byte).expect("it is readable");
            match byte {
                [b'\n'] => return String::from_utf8_lossy(&line).into_owned(),
                [byte] => line.push(byte),
            }
        }
    }
}
