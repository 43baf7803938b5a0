//! The environment that a job starts with: what a login gives, and nothing of the supervisor's own.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use afar_sys::users::User;

use crate::listener::watched_file::{SAME_TIME_MAX, Stamp};

/// Variables by name, in bytes: neither names nor values need be UTF-8.
pub(crate) type Variables = BTreeMap<Vec<u8>, Vec<u8>>;

/// What a login on Debian-like systems reads, in this order.
static LOGIN_FILES: [LoginFile; 2] =
    [LoginFile::new("/etc/environment"), LoginFile::new("/etc/default/locale")];

/// The largest such file that is read.
const LOGIN_FILE_BYTES_MAX: u64 = 64 * 1024;

const PATH_OF_ROOT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const PATH_OF_USERS: &str = "/usr/local/bin:/usr/bin:/bin:/usr/games";

/// What a login of `user` gives (login(1), sshd(8) "LOGIN PROCESS"): who and where one is, the
/// system's own settings, the time zone that the server was started with.
pub(crate) fn login_variables(user: &User) -> Variables {
    let mut variables = Variables::new();
    let mut set = |name: &str, value: &[u8]| {
        variables.insert(name.as_bytes().to_vec(), value.to_vec());
    };
    let name = user.name.as_bytes();
    set("USER", name);
    set("LOGNAME", name);
    set("HOME", user.home.as_os_str().as_bytes());
    set("SHELL", shell_of(user).as_os_str().as_bytes());
    set("PATH", if user.uid == 0 { PATH_OF_ROOT } else { PATH_OF_USERS }.as_bytes());
    set("MAIL", &[b"/var/mail/", name].concat());
    if let Some(zone) = std::env::var_os("TZ") {
        set("TZ", zone.as_bytes());
    }
    let runtime = format!("/run/user/{}", user.uid);
    // At a login it may not be there yet, and then the name could be another one's who came first.
    if std::fs::metadata(&runtime).is_ok_and(|found| found.is_dir() && found.uid() == user.uid) {
        set("XDG_RUNTIME_DIR", runtime.as_bytes());
    }
    for file in &LOGIN_FILES {
        variables.extend(file.variables());
    }
    variables
}

/// A file of `NAME=value` lines that a login on Debian-like systems reads through pam_env(8).
struct LoginFile {
    path: &'static str,
    /// What it said when it was read last, and what it was then. Every job asks for it.
    last: Mutex<Option<(Stamp, Variables)>>,
}

impl LoginFile {
    const fn new(path: &'static str) -> Self {
        Self { path, last: Mutex::new(None) }
    }

    /// What it says now. A machine without this file has nothing to say there.
    fn variables(&self) -> Variables {
        // Before it is read: what is written meanwhile makes the stamp an old one.
        let Some(stamp) = Stamp::of(self.path.as_ref()) else { return Variables::new() };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((then, variables)) = &*last
            && *then == stamp
        {
            return variables.clone();
        }
        let text = afar_net::files::read_regular(self.path.as_ref(), LOGIN_FILE_BYTES_MAX);
        let variables = text.map(|text| parse_login_file(&text)).unwrap_or_default();
        *last = stamp.is_older_than(SAME_TIME_MAX).then(|| (stamp, variables.clone()));
        variables
    }
}

/// The user's shell; the entry may be empty, which means `/bin/sh` (passwd(5)).
pub(crate) fn shell_of(user: &User) -> &Path {
    if user.shell.as_os_str().is_empty() { Path::new("/bin/sh") } else { &user.shell }
}

/// Reads `NAME=value` lines as pam_env(8) does: comments from `#`, an `export` before the name,
/// quotes around the value. A line that is none of that is left out.
fn parse_login_file(text: &[u8]) -> Variables {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let line = line.split(|byte| *byte == b'#').next()?.trim_ascii();
    let line = line.strip_prefix(b"export ").unwrap_or(line).trim_ascii_start();
    let equals = line.iter().position(|byte| *byte == b'=')?;
    let (name, value) = (line.get(..equals)?, line.get(equals + 1..)?);
    let name_byte = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    if name.is_empty() || !name.iter().all(name_byte) || value.contains(&0) {
        return None;
    }
    Some((name.to_vec(), unquote(value).to_vec()))
}

fn unquote(value: &[u8]) -> &[u8] {
    for quote in [b'"', b'\''] {
        if let Some(inner) =
            value.strip_prefix(&[quote]).and_then(|rest| rest.strip_suffix(&[quote]))
        {
            return inner;
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn login_files_are_read_as_pam_env_reads_them() {
        let text =
            b"# a comment\nLANG=C.UTF-8\nexport A=\"b c\" # why\nB='d'\nnonsense\n=x\nC-D=e\n";
        let read = parse_login_file(text);
        let expected = [("LANG", "C.UTF-8"), ("A", "b c"), ("B", "d")];
        let expected: Variables = expected.map(|(name, value)| (name.into(), value.into())).into();
        assert_eq!(read, expected);
    }

    #[test]
    fn a_login_file_is_read_again_when_it_has_changed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("environment");
        let file = LoginFile::new(path.to_str().unwrap().to_owned().leak());
        let value = || file.variables().remove(b"A".as_slice());
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        assert_eq!(value(), None);
        // Of the same length and within the same tick of the clock, and then long settled.
        for written in ["1", "2", "3"] {
            std::fs::write(&path, format!("A={written}\n")).unwrap();
            assert_eq!(value(), Some(written.into()));
            assert_eq!(value(), Some(written.into()));
        }
        // That a file is settled goes by the time of its last change, which nobody can set: so it is
        // entered here as it would be a while later.
        let stamp = Stamp::of(&path).unwrap();
        *file.last.lock().unwrap() = Some((stamp, parse_login_file(b"A=settled")));
        assert_eq!(value(), Some("settled".into()));
        let opened = std::fs::File::options().append(true).open(&path).unwrap();
        opened.set_modified(long_ago).unwrap();
        assert_eq!(value(), Some("3".into()));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(value(), None);
    }

    #[test]
    fn a_login_says_who_and_where_one_is() {
        let user = User {
            name: "ann".into(),
            uid: 4_000_000,
            gid: 4_000_000,
            home: "/home/ann".into(),
            shell: "".into(),
            gecos: "".into(),
        };
        let variables = login_variables(&user);
        let value = |name: &str| variables.get(name.as_bytes()).map(Vec::as_slice);
        assert_eq!(value("USER"), Some(b"ann".as_slice()));
        assert_eq!(value("LOGNAME"), Some(b"ann".as_slice()));
        assert_eq!(value("HOME"), Some(b"/home/ann".as_slice()));
        assert_eq!(value("SHELL"), Some(b"/bin/sh".as_slice()));
        assert!(value("PATH").is_some());
        assert_eq!(value("XDG_RUNTIME_DIR"), None);
    }
}
