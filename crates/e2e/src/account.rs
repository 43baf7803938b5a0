//! Accounts of this machine that a test makes for itself and removes again. Only root can.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use crate::client::Run;
use crate::deadline::{DEADLINE, Deadline};
use crate::fail;
use crate::process::{self, Process};

/// What the names of all such accounts begin with.
const PREFIX: &str = "afar-e2e-";

/// A system account with a home of its own, a group of its own, and no password.
///
/// When it is dropped its processes are killed and it is removed. One that a killed test has left behind
/// is removed when the next one is made.
#[derive(Debug)]
pub struct Account {
    name: String,
    uid: u32,
    gid: u32,
    directory: TempDir,
    /// Held as long as the account is wanted.
    _wanted: OwnedFd,
    wanted_path: PathBuf,
}

/// Whether accounts can be made. If not, it is said, past the capturing of tests' output; and where the
/// tests are there to be counted (`CI`), it fails.
///
/// # Panics
/// In CI, when this is not root.
#[must_use]
pub fn can_make_accounts() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        assert!(std::env::var_os("CI").is_none(), "CI must run the tests as root");
        let test = std::thread::current().name().unwrap_or_default().to_owned();
        let _ = writeln!(std::io::stderr(), "SKIPPED, only root can make accounts: {test}");
    }
    is_root
}

impl Account {
    /// A fresh one with `/bin/sh`.
    ///
    /// # Panics
    /// It can't be made: this is not root, or useradd(8) is missing.
    #[track_caller]
    #[must_use]
    pub fn new() -> Self {
        let _turn = turn();
        remove_leftovers();
        let random = afar_sys::random::random_bytes::<4>().expect("the kernel has random bytes");
        let name = format!("{PREFIX}{:08x}", u32::from_ne_bytes(random));
        let wanted_path = wanted_dir().join(&name);
        let wanted = File::create(&wanted_path).expect("root can write there");
        flock(&wanted, FlockOperation::LockExclusive).expect("the name is this account's own");
        // Below /tmp, because the account must be able to walk there.
        let mut builder = tempfile::Builder::new();
        builder.prefix(PREFIX).permissions(Permissions::from_mode(0o711));
        let directory = builder.tempdir().expect("/tmp can be written");
        let home = directory.path().join("home");
        tool(
            "useradd",
            ["-r", "-M", "-U", "-s", "/bin/sh", "-d"],
            [home.as_os_str(), name.as_ref()],
        );
        let user = afar_sys::users::user_by_name(name.as_ref()).expect("it can be read");
        let user = user.expect("it was just made");
        let account = Self {
            name,
            uid: user.uid,
            gid: user.gid,
            directory,
            _wanted: wanted.into(),
            wanted_path,
        };
        for path in [home.clone(), home.join(".ssh")] {
            fs::create_dir(&path).expect("the directory is new");
            account.give(&path, 0o700);
        }
        account
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its user id.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Its home.
    #[must_use]
    pub fn home(&self) -> PathBuf {
        self.directory.path().join("home")
    }

    /// A path beside its home, in a directory of root's that everybody may walk through.
    #[must_use]
    pub fn beside_home(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file of its own in its home.
    ///
    /// # Panics
    /// It can't be written.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>, mode: u32) -> PathBuf {
        let path = self.home().join(name);
        fs::write(&path, contents).expect("root can write there");
        self.give(&path, mode);
        path
    }

    /// Makes something the account's own.
    ///
    /// # Panics
    /// It is not there.
    pub fn give(&self, path: &Path, mode: u32) {
        chown(path, Some(self.uid), Some(self.gid)).expect("root can give it away");
        fs::set_permissions(path, Permissions::from_mode(mode)).expect("root can change it");
    }

    /// Makes this line the whole of its `authorized_keys`.
    pub fn authorize(&self, line: &str) {
        self.write(".ssh/authorized_keys", line, 0o600);
    }

    /// `usermod OPTIONS NAME`.
    ///
    /// # Panics
    /// It refuses.
    pub fn modify<const N: usize>(&self, options: [&str; N]) {
        let _turn = turn();
        tool("usermod", options, [OsStr::new(&self.name)]);
    }

    /// A group that it is a member of from now on, beside its own; removed with it.
    ///
    /// # Panics
    /// It can't be made.
    #[must_use]
    pub fn join_new_group(&self) -> String {
        let group = format!("{}g", self.name);
        {
            let _turn = turn();
            tool("groupadd", ["-r"], [OsStr::new(&group)]);
        }
        self.modify(["-a", "-G", &group]);
        group
    }

    /// A program that runs as this account, in its home, with a login's variables. The program itself
    /// need not lie where the account may walk.
    pub fn program<const N: usize>(&self, program: impl AsRef<OsStr>, arguments: [&str; N]) -> Run {
        let script = "import os, sys; program = os.open(sys.argv[4], os.O_RDONLY)\n\
             os.initgroups(sys.argv[1], int(sys.argv[3])); os.setgid(int(sys.argv[3]))\n\
             os.setuid(int(sys.argv[2])); os.chdir(os.environ['HOME'])\n\
             os.execve(program, sys.argv[4:], os.environ)";
        let run = Run::new("python3", ["-c", script, &self.name]);
        let run = run.arg(self.uid.to_string()).arg(self.gid.to_string()).arg(program);
        let run = arguments.into_iter().fold(run, Run::arg);
        run.env("HOME", self.home()).env("USER", &self.name).env("LOGNAME", &self.name)
    }

    /// Its processes that have not ended.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        let own = |pid: u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line =
                status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
            line.split_whitespace().any(|uid| uid == self.uid.to_string())
        };
        let living =
            process::all().into_iter().filter(|entry| entry.state != 'Z' && own(entry.pid));
        living.filter_map(|entry| Process::open(entry.pid)).collect()
    }
}

impl Default for Account {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        for process in self.processes() {
            process.signal(rustix::process::Signal::KILL);
            let _ = process.wait_until(Deadline::after(DEADLINE));
        }
        let _turn = turn();
        remove(&self.name, &self.wanted_path);
        let _ = fs::remove_dir_all(Path::new("/run/afar").join(self.uid.to_string()));
    }
}

/// One at a time: the tools lock the database, and wait for each other by sleeping.
fn turn() -> File {
    let path = wanted_dir().join(".turn");
    let file = File::options().create(true).append(true).open(path).expect("root can write there");
    flock(&file, FlockOperation::LockExclusive).expect("a lock can be waited for");
    file
}

/// A locked file in it says that the account of that name is wanted.
fn wanted_dir() -> PathBuf {
    let path = std::env::temp_dir().join("afar-e2e-accounts");
    fs::create_dir_all(&path).expect("/tmp can be written");
    path
}

fn remove_leftovers() {
    let entries = fs::read_dir(wanted_dir()).expect("it was just made");
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        let Ok(file) = File::open(&path) else { continue };
        let is_left = flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
        if name.starts_with(PREFIX) && is_left {
            remove(name, &path);
        }
    }
}

fn remove(name: &str, wanted: &Path) {
    // -f: also while a process of it, which was killed, has not been waited for.
    let _ = Command::new("userdel").args(["-f", name]).output();
    let _ = Command::new("groupdel").arg(format!("{name}g")).output();
    let _ = fs::remove_file(wanted);
}

#[track_caller]
fn tool<const N: usize, const M: usize>(program: &str, options: [&str; N], rest: [&OsStr; M]) {
    let output = Command::new(program).args(options).args(rest).output();
    let output = output.expect("the package passwd is installed");
    if !output.status.success() {
        fail(&format!("{program} {options:?} {rest:?}: {output:?}"));
    }
}
