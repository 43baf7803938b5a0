//! The cgroup of one job: its limits, its end, and what it has cost.

use super::{ensure_directory, open_directory, read_file, write_file};
use crate::process_tree::{ProcessId, process_of};
use rustix::fs::{AtFlags, FileType, unlinkat};
use rustix::io::Errno;
use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// What the names of groups begin with.
pub(super) const PREFIX: &str = "job-";

/// How deep the cgroups are followed that a job has made within its own.
const DEPTH_MAX: usize = 8;

/// The period of the limit on processor time, and the longest that the kernel takes, in microseconds.
const CPU_PERIOD_US: u64 = 100_000;
const CPU_PERIOD_US_MAX: u64 = 1_000_000;

/// The least share of a processor for which the usual period is long enough: the kernel takes no
/// quota below a millisecond.
const CPU_MILLI_MIN: u64 = 10;

/// What a group is held to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupLimits {
    /// Memory of all of its processes together, in bytes; nothing of it is swapped.
    pub memory_bytes: Option<u64>,
    /// Processor time of all of them together, in thousandths of a processor.
    pub cpu_milli: Option<u64>,
    /// How many processes and threads.
    pub pids_max: Option<u64>,
}

/// What a group has read from and written to devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupIo {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
}

/// The cgroup of a job. Removed when this is dropped, unless somebody is in it.
#[derive(Debug)]
pub struct Group {
    directory: OwnedFd,
    parent: OwnedFd,
    name: CString,
}

impl Group {
    pub(super) fn new(parent: &OwnedFd, name: &str, limits: &GroupLimits) -> io::Result<Self> {
        let name = format!("{PREFIX}{name}");
        let parent = parent.try_clone()?;
        let directory = ensure_directory(&parent, &name)?;
        let group = Self { directory, parent, name: CString::new(name)? };
        group.limit(limits)?;
        Ok(group)
    }

    pub(super) fn existing(parent: &OwnedFd, name: &str) -> io::Result<Self> {
        let name = CString::new(format!("{PREFIX}{name}"))?;
        let directory = open_directory(parent, OsStr::from_bytes(name.to_bytes()))?;
        Ok(Self { directory, parent: parent.try_clone()?, name })
    }

    fn limit(&self, limits: &GroupLimits) -> io::Result<()> {
        if let Some(bytes) = limits.memory_bytes {
            write_file(&self.directory, "memory.max", &bytes.to_string())?;
            // What was swapped out would be memory beyond the limit, and an end without an end. Not
            // there where the machine has no swap.
            match write_file(&self.directory, "memory.swap.max", "0") {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            // The job ends as a whole, and not by a worker here and there (kernel 4.19).
            write_file(&self.directory, "memory.oom.group", "1")?;
        }
        if let Some(milli) = limits.cpu_milli {
            write_file(&self.directory, "cpu.max", &cpu_max(milli))?;
        }
        if let Some(count) = limits.pids_max {
            write_file(&self.directory, "pids.max", &count.to_string())?;
        }
        Ok(())
    }

    /// Sends SIGKILL to every process in it and below it at once, those included that are being
    /// started at this moment.
    ///
    /// # Errors
    /// `ENOENT` on kernels before 5.14.
    pub fn kill(&self) -> io::Result<()> {
        write_file(&self.directory, "cgroup.kill", "1")
    }

    /// Whether a process is in it or below it that has not ended. `true` if it can't be told.
    #[must_use]
    pub fn is_populated(&self) -> bool {
        let events = read_file(&self.directory, "cgroup.events");
        events.map_or(true, |events| value_of(&events, "populated") != Some(0))
    }

    /// The processes in it, but for those that the job has put into cgroups of its own.
    ///
    /// # Errors
    /// It can't be read.
    pub fn processes(&self) -> io::Result<Vec<ProcessId>> {
        let listed = read_file(&self.directory, "cgroup.procs")?;
        let pids = listed.lines().filter_map(|line| line.parse().ok());
        Ok(pids.filter_map(process_of).collect())
    }

    /// How many processes in it the kernel has ended for want of memory: that of the limit, or that of
    /// the machine. `None` where memory is not counted.
    #[must_use]
    pub fn ended_for_memory(&self) -> Option<u64> {
        value_of(&read_file(&self.directory, "memory.events").ok()?, "oom_kill")
    }

    /// What it has read from and written to devices; `None` where that is not counted.
    #[must_use]
    pub fn io(&self) -> Option<GroupIo> {
        read_file(&self.directory, "io.stat").ok().map(|text| sum_io(&text))
    }

    /// Removes the cgroup, and those that the job has made in it; `false` if somebody is still there.
    #[must_use]
    pub fn remove(&self) -> bool {
        !self.is_populated() && remove_below(&self.parent, &self.name, DEPTH_MAX).is_ok()
    }
}

impl AsFd for Group {
    /// The directory, as [`Confinement::cgroup`](crate::spawn::Confinement) wants it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = unlinkat(&self.parent, &self.name, AtFlags::REMOVEDIR);
    }
}

fn remove_below(parent: &OwnedFd, name: &CStr, depth: usize) -> Result<(), Errno> {
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::BUSY) if depth > 0 => {}
        Err(error) => return Err(error),
    }
    let directory = open_directory(parent, OsStr::from_bytes(name.to_bytes()))?;
    for entry in rustix::fs::Dir::read_from(&directory)?.flatten() {
        let is_dot = entry.file_name().to_bytes().starts_with(b".");
        if entry.file_type() == FileType::Directory && !is_dot {
            remove_below(&directory, entry.file_name(), depth - 1)?;
        }
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// What `cpu.max` is set to.
fn cpu_max(milli: u64) -> String {
    let period_us = if milli < CPU_MILLI_MIN { CPU_PERIOD_US_MAX } else { CPU_PERIOD_US };
    format!("{} {period_us}", milli.saturating_mul(period_us) / 1000)
}

/// The number behind a name, of lines of both.
fn value_of(text: &str, name: &str) -> Option<u64> {
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(value)
}

/// The sum over all devices: `8:0 rbytes=1 wbytes=2 rios=3 …`.
fn sum_io(text: &str) -> GroupIo {
    let sum = |key: &str| {
        let words = text.split_ascii_whitespace();
        let values = words.filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok());
        values.fold(0, u64::saturating_add)
    };
    GroupIo { read_bytes: sum("rbytes="), written_bytes: sum("wbytes=") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_a_processor_are_quotas_that_the_kernel_takes() {
        for (milli, expected) in [
            (1500, "150000 100000"),
            (1000, "100000 100000"),
            (10, "1000 100000"),
            (9, "9000 1000000"),
            (1, "1000 1000000"),
        ] {
            assert_eq!(cpu_max(milli), expected);
        }
        assert!(cpu_max(u64::MAX).ends_with(" 100000"));
    }

    #[test]
    fn what_the_kernel_says_is_read() {
        let events = "low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\noom_group_kill 4\n";
        assert_eq!(value_of(events, "oom_kill"), Some(1));
        assert_eq!(value_of(events, "oom"), Some(2));
        assert_eq!(value_of(events, "oom_"), None);
        let stat =
            "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n253:1 rbytes=5 wbytes=x\n";
        assert_eq!(sum_io(stat), GroupIo { read_bytes: 15, written_bytes: 20 });
        assert_eq!(sum_io(""), GroupIo::default());
    }
}
