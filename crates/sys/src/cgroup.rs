//! Control groups, version 2 (cgroups(7)): a group for each job, where somebody has delegated a part
//! of the hierarchy to us.
//!
//! What is delegated says so by itself: systemd marks the cgroup of a unit with `Delegate=yes`, and
//! whoever starts afar otherwise can set the same mark (`user.delegate`, an extended attribute). Without
//! it nothing is touched, root or not: the cgroups of a login belong to the service manager.
//!
//! ```text
//! BASE                 delegated to us
//! ├── listener         the listener, where the service manager has put it (DelegateSubgroup=)
//! └── afar-UID         a user's slice, which is that user's
//!     ├── supervisor   the supervisor and its guardian
//!     └── job-…        one job, and nothing else
//! ```
//!
//! Controllers can be given to the children of a cgroup only while it has no processes itself. So
//! BASE passes its controllers on only where the listener has a cgroup of its own from its start on: an
//! older service manager would otherwise find no place for a listener that it starts again.

mod group;

pub use group::{Group, GroupIo, GroupLimits};

use crate::users::effective_uid;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, chownat, fchown, fstat, mkdirat, openat};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The cgroup of the listener within what is delegated.
pub const LISTENER: &str = "listener";

/// The cgroup of a supervisor and its guardian within a user's slice.
const SUPERVISOR: &str = "supervisor";

/// What the names of users' slices begin with.
const SLICE_PREFIX: &str = "afar-";

/// Marks that a cgroup is left to whoever runs in it (systemd.resource-control(5), "Delegate=").
const MARKS: [&str; 2] = ["user.delegate", "trusted.delegate"];

/// Files of a delegated cgroup that are its new owner's (cgroup v2, "Model of Delegation").
const OWNERS_FILES: [&str; 3] = ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control"];

/// The most that is read of one of the kernel's files.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What can be held in, or counted, of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Controller {
    /// Memory: limits, and who was ended for want of it.
    Memory,
    /// Processor time.
    Cpu,
    /// How many processes and threads.
    Pids,
    /// What is read from and written to devices.
    Io,
}

impl Controller {
    const ALL: [Self; 4] = [Self::Memory, Self::Cpu, Self::Pids, Self::Io];

    /// The kernel's name of it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Pids => "pids",
            Self::Io => "io",
        }
    }
}

/// A part of the hierarchy that is left to us.
#[derive(Debug)]
pub struct Delegation {
    base: OwnedFd,
    /// Whether the listener has a cgroup of its own there, so that controllers can be passed on.
    passes_on: bool,
}

impl Delegation {
    /// What is delegated to this process; `None` if nothing is, which is usual.
    #[must_use]
    pub fn find() -> Option<Self> {
        Self::of(&own_directory()?)
    }

    /// What is delegated to a process of the cgroup `own`.
    pub(crate) fn of(own: &Path) -> Option<Self> {
        let open = |path: &Path| open_directory(CWD, path).ok().filter(is_delegated);
        if let Some(base) = open(own) {
            return Some(Self { base, passes_on: false });
        }
        let parent = own.parent().filter(|_| own.file_name() == Some(OsStr::new(LISTENER)))?;
        open(parent).map(|base| Self { base, passes_on: true })
    }

    /// The slice of a user, made if it is not there, and given to the user.
    ///
    /// # Errors
    /// It can't be made, or is another user's and we are not root.
    pub fn slice(&self, uid: u32, gid: u32) -> io::Result<Slice> {
        if self.passes_on {
            enable(&self.base);
        }
        let directory = ensure_directory(&self.base, &slice_name(uid))?;
        let supervisor = ensure_directory(&directory, SUPERVISOR)?;
        for directory in [&directory, &supervisor] {
            give(directory, uid, gid)?;
        }
        Ok(Slice { directory, supervisor, controllers: Vec::new() })
    }
}

/// The part of the hierarchy that holds one user's supervisor and its jobs.
#[derive(Debug)]
pub struct Slice {
    directory: OwnedFd,
    supervisor: OwnedFd,
    /// Those that its groups have.
    controllers: Vec<Controller>,
}

impl Slice {
    /// The slice that this process is in, as its supervisor or within one of its jobs, if it is one of
    /// this user's.
    #[must_use]
    pub fn current() -> Option<Self> {
        Self::of(&own_directory()?)
    }

    fn of(own: &Path) -> Option<Self> {
        let uid = effective_uid();
        let path =
            own.ancestors().find(|path| path.file_name() == Some(slice_name(uid).as_ref()))?;
        let directory = open_directory(CWD, path).ok()?;
        if fstat(&directory).ok()?.st_uid != uid {
            return None;
        }
        let supervisor = ensure_directory(&directory, SUPERVISOR).ok()?;
        Some(Self { directory, supervisor, controllers: Vec::new() })
    }

    /// Moves this process, with all of its threads, to the supervisor's place. Children that it has from
    /// now on are there too.
    ///
    /// # Errors
    /// `EACCES` where the present cgroup of this process is not within what was delegated.
    pub fn enter(&self) -> io::Result<()> {
        write_file(&self.supervisor, "cgroup.procs", "0")
    }

    /// Gives its groups every controller that it has itself, and removes the groups of jobs of which
    /// nothing is left. To be called after [`Slice::enter`].
    pub fn take(&mut self) {
        self.controllers = enable(&self.directory);
        self.sweep();
    }

    /// Whether its groups have this controller.
    #[must_use]
    pub fn has(&self, controller: Controller) -> bool {
        self.controllers.contains(&controller)
    }

    /// A new group for a job. `name` is the job's alone, without a slash.
    ///
    /// # Errors
    /// It can't be made, or a limit can't be set; then there is none.
    pub fn group(&self, name: &str, limits: &GroupLimits) -> io::Result<Group> {
        Group::new(&self.directory, name, limits)
    }

    /// The group of this name, if it is there.
    #[must_use]
    pub fn existing_group(&self, name: &str) -> Option<Group> {
        Group::existing(&self.directory, name).ok()
    }

    /// Removes the groups of which nothing is left.
    pub fn sweep(&self) {
        let Ok(listed) = rustix::fs::Dir::read_from(&self.directory) else { return };
        for entry in listed.flatten() {
            let name = entry.file_name();
            if name.to_bytes().starts_with(group::PREFIX.as_bytes()) {
                // One that somebody is in stays.
                let _ = rustix::fs::unlinkat(&self.directory, name, AtFlags::REMOVEDIR);
            }
        }
    }
}

fn slice_name(uid: u32) -> String {
    format!("{SLICE_PREFIX}{uid}")
}

/// Where the cgroup of this process is mounted.
fn own_directory() -> Option<PathBuf> {
    let cgroups = std::fs::read("/proc/self/cgroup").ok()?;
    let mounts = std::fs::read("/proc/self/mountinfo").ok()?;
    locate(&cgroups, &mounts)
}

/// The directory of the cgroup in `/proc/PID/cgroup`, by `/proc/PID/mountinfo`.
fn locate(cgroups: &[u8], mounts: &[u8]) -> Option<PathBuf> {
    let is_end = |byte: &u8| *byte == b'\n';
    let own = cgroups.split(is_end).find_map(|line| line.strip_prefix(b"0::"))?;
    let own = PathBuf::from(OsString::from_vec(own.to_vec()));
    mounts.split(is_end).find_map(|line| {
        let (before, after) = split_at_dash(line)?;
        if after.split(|byte| *byte == b' ').next()? != b"cgroup2" {
            return None;
        }
        let mut fields = before.split(|byte| *byte == b' ').skip(3);
        let (root, place) = (path_of(fields.next()?), path_of(fields.next()?));
        // A mount of another part of the hierarchy does not show us.
        Some(place.join(own.strip_prefix(root).ok()?))
    })
}

/// The fields before and after the lone dash, of which there may be any number before
/// (proc_pid_mountinfo(5)).
fn split_at_dash(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = line.windows(3).position(|window| window == b" - ")?;
    Some((line.get(..at)?, line.get(at + 3..)?))
}

/// A path with blanks and the like as `\040`.
fn path_of(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { tail.get(3..).unwrap_or_default() } else { tail };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

fn is_delegated(directory: &OwnedFd) -> bool {
    MARKS.iter().any(|mark| {
        let mut value = [0; 8];
        let length = rustix::fs::fgetxattr(directory, *mark, &mut value);
        length.is_ok_and(|length| value.get(..length) == Some(b"1".as_slice()))
    })
}

fn open_directory(at: impl AsFd, path: impl AsRef<Path>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, path.as_ref(), flags, Mode::empty())
}

fn ensure_directory(at: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    match mkdirat(at, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => open_directory(at, name),
        Err(error) => Err(error),
    }
}

/// Makes a cgroup and what is its owner's of it this user's.
fn give(directory: &OwnedFd, uid: u32, gid: u32) -> Result<(), Errno> {
    if fstat(directory)?.st_uid == uid {
        return Ok(());
    }
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    fchown(directory, uid, gid)?;
    OWNERS_FILES
        .iter()
        .try_for_each(|name| chownat(directory, *name, uid, gid, AtFlags::SYMLINK_NOFOLLOW))
}

/// Gives the children of a cgroup the controllers that it has; returns those that they have then.
fn enable(directory: &OwnedFd) -> Vec<Controller> {
    let listed = |file: &str, controller: &Controller| {
        let text = read_file(directory, file).unwrap_or_default();
        text.split_ascii_whitespace().any(|word| word == controller.name())
    };
    let available = Controller::ALL.into_iter().filter(|one| listed("cgroup.controllers", one));
    for controller in available {
        // One by one: one that can't be given takes no other with it.
        let _ = write_file(directory, "cgroup.subtree_control", &format!("+{}", controller.name()));
    }
    Controller::ALL.into_iter().filter(|one| listed("cgroup.subtree_control", one)).collect()
}

fn read_file(directory: &OwnedFd, name: &str) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(directory, name, flags, Mode::empty())?;
    let mut text = String::new();
    File::from(file).take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// Never makes a file: what is not there is a controller that is not.
fn write_file(directory: &OwnedFd, name: &str, text: &str) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(directory, name, flags, Mode::empty())?;
    File::from(file).write_all(text.as_bytes())
}

#[cfg(test)]
mod tests;
