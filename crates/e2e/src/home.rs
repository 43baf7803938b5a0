//! The files of a person who uses afar: a home, keys, trusted hosts, XDG directories.

use std::ffi::{OsStr, OsString};
use std::fs::{self, Permissions};
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::binary::{self, profile_directory};
use crate::client::Run;
use crate::fail;
use crate::fifo::Fifo;

/// A home with an ed25519 key in `.ssh/id_ed25519`, and nothing else. Removed when dropped.
#[derive(Debug)]
pub struct Home {
    /// Below the target directory, because `/tmp` is writable by all, which rightly makes a server
    /// refuse an `authorized_keys` there.
    directory: TempDir,
    user: String,
}

impl Home {
    /// A fresh one.
    ///
    /// # Panics
    /// It can't be made.
    #[must_use]
    pub fn new() -> Self {
        Self::made_in(&profile_directory(), 0o700)
    }

    /// One for what counts for everybody, which all users must be able to reach: in `/tmp`, because the
    /// target directory may be in somebody's home.
    ///
    /// # Panics
    /// As [`Home::new`].
    #[must_use]
    pub fn for_everybody() -> Self {
        Self::made_in(&std::env::temp_dir(), 0o755)
    }

    fn made_in(parent: &Path, mode: u32) -> Self {
        let mut builder = tempfile::Builder::new();
        builder.prefix("e2e-").permissions(Permissions::from_mode(mode));
        let directory = builder.tempdir_in(parent).expect("the place can be written");
        let user = afar_sys::users::current_user().expect("the user database can be read");
        let user = user.expect("whoever runs the tests is in the user database").name;
        let user = user.into_string().expect("names of users are UTF-8");
        let home = Self { directory, user };
        for name in ["home", "home/.ssh", "run"] {
            fs::DirBuilder::new().create(home.file(name)).expect("the directory is new");
            let private = Permissions::from_mode(0o700);
            fs::set_permissions(home.file(name), private).expect("it is ours");
        }
        home.make_key("home/.ssh/id_ed25519");
        home
    }

    /// The path of a file of this test, which need not be there.
    pub fn file(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file with mode 0600 and returns its path.
    ///
    /// # Panics
    /// It can't be written.
    pub fn write(&self, name: impl AsRef<Path>, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.file(name);
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&path).expect("the test's directory can be written");
        file.write_all(contents.as_ref()).expect("the disk has room");
        path
    }

    /// Makes a named pipe.
    ///
    /// # Panics
    /// It can't be made.
    #[must_use]
    pub fn fifo(&self, name: &str) -> Fifo {
        Fifo::new(self.file(name))
    }

    /// Makes an ed25519 key without a passphrase at `name` (and `name.pub`), and returns its path.
    ///
    /// # Panics
    /// ssh-keygen is missing.
    pub fn make_key(&self, name: &str) -> PathBuf {
        let path = self.file(name);
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-t", "ed25519", "-N", "", "-C", "e2e", "-f"]).arg(&path);
        let made = command.output().expect("ssh-keygen (openssh-client) is installed");
        assert!(made.status.success(), "{command:?}: {made:?}");
        path
    }

    /// The private key file of the user.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.file("home/.ssh/id_ed25519")
    }

    /// The line of `authorized_keys` for a private key file.
    ///
    /// # Panics
    /// There is no `.pub` beside it.
    #[must_use]
    pub fn public_line(key: &Path) -> String {
        let mut path = key.as_os_str().to_owned();
        path.push(".pub");
        fs::read_to_string(path).expect("a public key lies beside the private one")
    }

    /// The file of trusted hosts.
    #[must_use]
    pub fn known_hosts(&self) -> PathBuf {
        self.file("home/.ssh/known_hosts")
    }

    /// Trusts whoever has the private key `host_key` at `address`.
    ///
    /// # Panics
    /// The files can't be read or written.
    pub fn trust(&self, address: SocketAddr, host_key: &Path) {
        let line = Self::public_line(host_key);
        let known = fs::read_to_string(self.known_hosts()).unwrap_or_default();
        let (host, port) = (address.ip(), address.port());
        self.write("home/.ssh/known_hosts", format!("{known}[{host}]:{port} {line}"));
    }

    /// The name of the user who runs the tests, which is the only one that a server of theirs serves.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The variables that move everything of afar's to this home.
    #[must_use]
    pub fn environment(&self) -> Vec<(OsString, OsString)> {
        let directory = |name: &str, path: &str| (name.into(), self.file(path).into_os_string());
        vec![
            ("USER".into(), self.user.clone().into()),
            ("LOGNAME".into(), self.user.clone().into()),
            directory("HOME", "home"),
            directory("XDG_RUNTIME_DIR", "run"),
            directory("XDG_STATE_HOME", "home/state"),
            directory("XDG_CONFIG_HOME", "home/config"),
            directory("XDG_DATA_HOME", "home/data"),
            directory("XDG_CACHE_HOME", "home/cache"),
        ]
    }

    /// Afar with these arguments and this home.
    pub fn afar<I>(&self, arguments: I) -> Run
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        self.program(binary::afar(), arguments)
    }

    /// Any program with this home.
    pub fn program<I>(&self, program: impl AsRef<OsStr>, arguments: I) -> Run
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let run = Run::new(program, arguments);
        self.environment().into_iter().fold(run, |run, (name, value)| run.env(name, value))
    }

    /// The JSON object in a file of this test.
    ///
    /// # Panics
    /// It is missing, or no JSON.
    #[track_caller]
    #[must_use]
    pub fn json(&self, name: &str) -> serde_json::Value {
        let text = fs::read(self.file(name));
        let Ok(text) = text else { fail(&format!("{name}: {text:?}")) };
        let value = serde_json::from_slice(&text);
        value.unwrap_or_else(|error| {
            fail(&format!("{name} is no JSON: {error}: {}", text.escape_ascii()))
        })
    }
}

impl Default for Home {
    fn default() -> Self {
        Self::new()
    }
}
