//! `--result`: the outcome as one JSON object, whole or not at all.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use afar_client::{Outcome, Stream};
use afar_net::files::Replacement;

use super::output::Output;

/// Where the outcome goes, opened before the command is started: a result that can't be written is
/// better known then.
#[derive(Debug)]
pub(super) enum ResultFile {
    /// Our own stdout or stderr, behind what is on its way there.
    Stream(Stream),
    /// A descriptor or device, written to as it is.
    Direct(File),
    /// A file that appears with its whole content.
    Atomic(Replacement),
}

impl ResultFile {
    /// Opens what is needed to write to `path`.
    pub(super) fn prepare(path: &Path) -> Result<Self, (PathBuf, io::Error)> {
        Self::open(path).map_err(|error| (path.to_owned(), error))
    }

    fn open(path: &Path) -> io::Result<Self> {
        match path.as_os_str().as_encoded_bytes() {
            b"-" | b"/dev/stdout" | b"/dev/fd/1" => return Ok(Self::Stream(Stream::Stdout)),
            b"/dev/stderr" | b"/dev/fd/2" => return Ok(Self::Stream(Stream::Stderr)),
            _ => {}
        }
        let in_place = path.starts_with("/dev/fd") || path.starts_with("/proc");
        let there = if in_place { None } else { std::fs::metadata(path).ok() };
        if in_place || there.is_some_and(|metadata| !metadata.is_file()) {
            // Appending, because a descriptor's file may hold something already.
            return OpenOptions::new().append(true).open(path).map(Self::Direct);
        }
        // A link stays one: what it points to is replaced.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        Replacement::prepare(&path).map(Self::Atomic).map_err(io::Error::other)
    }

    /// Writes the outcome with a line end.
    pub(super) fn write(self, outcome: &Outcome, output: &mut Output) -> io::Result<()> {
        let mut line = serde_json::to_vec(outcome)?;
        line.push(b'\n');
        match self {
            Self::Stream(stream) => {
                output.push(stream, line.into());
                Ok(())
            }
            Self::Direct(mut file) => file.write_all(&line),
            Self::Atomic(file) => file.place(&line).map_err(io::Error::other),
        }
    }
}

#[cfg(test)]
mod tests {
    use afar_client::Phase;

    use super::*;

    fn outcome() -> Outcome {
        Outcome::not_started("host", Some("j"), Phase::Connect, "unreachable")
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn the_file_appears_whole_and_replaces_the_old_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("result");
        std::fs::write(&path, "old").unwrap();
        let result = ResultFile::prepare(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
        result.write(&outcome(), &mut Output::new()).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json, serde_json::to_value(outcome()).unwrap());
        assert_eq!(names(directory.path()), ["result"]);
    }

    #[test]
    fn a_result_that_is_never_written_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        drop(ResultFile::prepare(&directory.path().join("result")).unwrap());
        assert!(names(directory.path()).is_empty());
    }

    #[test]
    fn a_place_that_can_not_be_written_is_known_beforehand() {
        let directory = tempfile::tempdir().unwrap();
        assert!(ResultFile::prepare(&directory.path().join("missing/result")).is_err());
        assert!(ResultFile::prepare(directory.path()).is_err());
    }

    #[test]
    fn a_link_stays_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let (real, link) = (directory.path().join("real"), directory.path().join("link"));
        std::fs::write(&real, "").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        ResultFile::prepare(&link).unwrap().write(&outcome(), &mut Output::new()).unwrap();
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(std::fs::read_to_string(&real).unwrap().starts_with('{'));
    }

    #[test]
    fn a_device_is_written_to_as_it_is() {
        let result = ResultFile::prepare(Path::new("/dev/null")).unwrap();
        assert!(matches!(result, ResultFile::Direct(_)));
        result.write(&outcome(), &mut Output::new()).unwrap();
    }
}
