//! Where `config.toml` is, and which files of that name may be believed.

use std::io;
use std::path::{Path, PathBuf};

use afar_core::config::ConfigFile;
use afar_core::escape::escape_for_terminal;
use afar_core::limits::CONFIG_BYTES_MAX;
use afar_net::files::{FileError, read_checked};
use afar_sys::users::effective_uid;

use crate::commands::account;

/// The system's file.
const SYSTEM: &str = "/etc/afar/config.toml";

/// The files that are there.
#[derive(Debug, Default)]
pub(crate) struct ConfigFiles {
    /// In the order in which they count, each with whether it is the user's own.
    files: Vec<(ConfigFile, bool)>,
}

impl ConfigFiles {
    /// The user's file and the system's, as far as they are there.
    ///
    /// # Errors
    /// One that is there and can't be used: a text for the user.
    pub(crate) fn load() -> Result<Self, String> {
        let mut files = Vec::new();
        let home = home();
        let own = own_path(home.as_deref());
        for (path, is_own) in [(own, true), (Some(PathBuf::from(SYSTEM)), false)] {
            let Some(path) = path else { continue };
            match read(&path, home.as_deref()) {
                Ok(file) => files.push((file, is_own)),
                Err(Failure::File(error)) if is_missing(&error) => {}
                Err(error) => return Err(error.into_text()),
            }
        }
        Ok(Self { files })
    }

    /// This file only, which must be there; `none` is no file.
    ///
    /// # Errors
    /// As [`ConfigFiles::load`].
    pub(crate) fn load_only(path: &Path) -> Result<Self, String> {
        if path.as_os_str() == "none" {
            return Ok(Self::default());
        }
        let file = read(path, home().as_deref()).map_err(Failure::into_text)?;
        Ok(Self { files: vec![(file, true)] })
    }

    /// What they say about a host, or about every one.
    pub(crate) fn client(&self, host: Option<&str>) -> afar_core::config::ClientSettings {
        let files: Vec<ConfigFile> = self.files.iter().map(|(file, _)| file.clone()).collect();
        afar_core::config::client_settings(&files, host)
    }

    /// What they say about the server. The system's file is about root's: another user's could
    /// neither read its host keys nor listen in its place.
    pub(crate) fn serve(&self) -> afar_core::config::ServeSettings {
        let root = effective_uid() == 0;
        let files = self.files.iter().filter(|(_, is_own)| *is_own || root).map(|(file, _)| file);
        afar_core::config::serve_settings(files)
    }
}

/// The home directory: `HOME`, else the account's.
pub(crate) fn home() -> Option<PathBuf> {
    absolute("HOME").or_else(|| Some(account()?.home))
}

/// A path of the configuration, whose `~/` is the home.
pub(crate) fn expand(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), home()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(path),
    }
}

fn own_path(home: Option<&Path>) -> Option<PathBuf> {
    let base = absolute("XDG_CONFIG_HOME").or_else(|| Some(home?.join(".config")))?;
    Some(base.join("afar/config.toml"))
}

/// The value of a variable if it is an absolute path.
fn absolute(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

enum Failure {
    File(FileError),
    Text(String),
}

impl Failure {
    fn into_text(self) -> String {
        match self {
            Self::File(
                error @ (FileError::WritableByOthers { .. } | FileError::WrongOwner { .. }),
            ) => {
                format!("configuration: {error}; what others can change is not believed")
            }
            Self::File(error) => format!("configuration: {error}"),
            Self::Text(text) => text,
        }
    }
}

fn read(path: &Path, home: Option<&Path>) -> Result<ConfigFile, Failure> {
    // One byte over the limit, so that the reader says that the file is too large.
    let bytes = read_checked(path, home, effective_uid(), CONFIG_BYTES_MAX as u64 + 1);
    let bytes = bytes.map_err(Failure::File)?;
    let name = escape_for_terminal(path.as_os_str().as_encoded_bytes());
    ConfigFile::parse(&name, &bytes).map_err(|error| Failure::Text(error.to_string()))
}

/// Also where what should be a directory above it is none.
fn is_missing(error: &FileError) -> bool {
    let not_a_directory = |source: &io::Error| source.kind() == io::ErrorKind::NotADirectory;
    error.is_not_found() || matches!(error, FileError::Io { source, .. } if not_a_directory(source))
}
