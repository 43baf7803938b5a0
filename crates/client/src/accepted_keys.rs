//! Which key a server has accepted before, so that it can be used at once next time.
//!
//! One line a destination, `USER@HOST:PORT FINGERPRINT`, in a private file. It holds no secret and
//! decides nothing: a wrong line costs one refused attempt. So whatever can't be read is passed
//! over, and whatever can't be written is no error.

use std::path::{Path, PathBuf};

use afar_net::files;

/// Largest file that is read; what is beyond is forgotten, oldest first.
const BYTES_MAX: usize = 256 * 1024;

/// The file of accepted keys.
#[derive(Clone, Debug)]
pub(crate) struct AcceptedKeys {
    path: PathBuf,
}

impl AcceptedKeys {
    /// The file in the directory of afar's state.
    pub(crate) fn in_directory(state_dir: &Path) -> Self {
        Self { path: state_dir.join("accepted_keys") }
    }

    /// The fingerprint of the key that was accepted last.
    pub(crate) fn recall(&self, destination: &str) -> Option<String> {
        let bytes = files::read_regular(&self.path, BYTES_MAX as u64).ok()?;
        find(&bytes, destination)
    }

    /// Remembers the key that was accepted, or, given `None`, forgets what was remembered. The file
    /// is written only if that changes anything.
    pub(crate) fn remember(&self, destination: &str, fingerprint: Option<&str>) {
        if self.recall(destination).as_deref() == fingerprint {
            return;
        }
        let line = fingerprint.map(|fingerprint| format!("{destination} {fingerprint}"));
        // A name with a blank or a line break would be read back as something else.
        if destination.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return;
        }
        let _ = files::update_atomically(&self.path, BYTES_MAX as u64 * 2, |old| {
            let new = edited(old, destination, line.as_deref());
            (new != old).then_some(new)
        });
    }
}

fn lines(bytes: &[u8]) -> impl DoubleEndedIterator<Item = (&str, &str)> {
    let lines = bytes.split(|byte| *byte == b'\n');
    lines.filter_map(|line| std::str::from_utf8(line).ok()?.split_once(' '))
}

fn find(bytes: &[u8], destination: &str) -> Option<String> {
    let found = lines(bytes).rev().find(|(name, _)| *name == destination);
    found.map(|(_, fingerprint)| fingerprint.trim().to_owned())
}

/// The file with this line in place of the destination's old one, and at most [`BYTES_MAX`] long.
fn edited(old: &[u8], destination: &str, line: Option<&str>) -> Vec<u8> {
    let kept = lines(old).filter(|(name, _)| *name != destination);
    let kept = kept.map(|(name, fingerprint)| format!("{name} {fingerprint}"));
    let all: Vec<String> = kept.chain(line.map(ToOwned::to_owned)).collect();
    let mut bytes: usize = all.iter().map(|line| line.len() + 1).sum();
    let mut new = Vec::with_capacity(bytes.min(BYTES_MAX));
    for line in all {
        if bytes > BYTES_MAX {
            bytes -= line.len() + 1;
            continue;
        }
        new.extend_from_slice(line.as_bytes());
        new.push(b'\n');
    }
    new
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_is_remembered_is_recalled_replaced_and_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let keys = AcceptedKeys::in_directory(&directory.path().join("afar"));
        assert_eq!(keys.recall("a@h:1"), None);
        keys.remember("a@h:1", Some("SHA256:one"));
        keys.remember("b@h:1", Some("SHA256:other"));
        assert_eq!(keys.recall("a@h:1").as_deref(), Some("SHA256:one"));
        keys.remember("a@h:1", Some("SHA256:two"));
        assert_eq!(keys.recall("a@h:1").as_deref(), Some("SHA256:two"));
        assert_eq!(keys.recall("b@h:1").as_deref(), Some("SHA256:other"));
        keys.remember("a@h:1", None);
        assert_eq!(keys.recall("a@h:1"), None);
        assert_eq!(keys.recall("b@h:1").as_deref(), Some("SHA256:other"));
        let mode = std::fs::metadata(&keys.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn the_file_is_left_alone_when_nothing_changes() {
        let directory = tempfile::tempdir().unwrap();
        let keys = AcceptedKeys::in_directory(directory.path());
        keys.remember("a@h:1", Some("SHA256:one"));
        let inode = || std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&keys.path).unwrap());
        let before = inode();
        keys.remember("a@h:1", Some("SHA256:one"));
        keys.remember("unknown@h:1", None);
        assert_eq!(inode(), before);
    }

    #[test]
    fn rubbish_is_passed_over() {
        let file = b"\xff\xfe\nnonsense\na@h:1 SHA256:x\n\n";
        assert_eq!(find(file, "a@h:1").as_deref(), Some("SHA256:x"));
        assert_eq!(find(file, "nonsense"), None);
    }

    #[test]
    fn the_oldest_are_forgotten_when_it_grows_too_long() {
        let mut file = Vec::new();
        for number in 0..10_000 {
            file.extend_from_slice(
                format!("user@host{number}:2327 SHA256:{number:0>32}\n").as_bytes(),
            );
        }
        let new = edited(&file, "new@host:1", Some("new@host:1 SHA256:n"));
        assert!(new.len() <= BYTES_MAX);
        assert_eq!(find(&new, "new@host:1").as_deref(), Some("SHA256:n"));
        assert_eq!(find(&new, "user@host0:2327"), None);
        assert!(find(&new, "user@host9999:2327").is_some());
    }
}
