//! Processes as `/proc` shows them, and waits for their ends.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::deadline::{DEADLINE, Deadline};
use crate::fail;

/// One process, held by a descriptor: its pid can't go to another one unnoticed.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    pidfd: OwnedFd,
}

/// How much memory a process takes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The most that was ever resident (`VmHWM`, proc_pid_status(5)).
    pub peak: u64,
    /// What is resident now.
    pub resident: u64,
    /// What is resident now, shared pages divided by who shares them (`Pss`).
    pub proportional: u64,
}

/// A line of the process table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number.
    pub pid: u32,
    /// Its parent's number.
    pub parent: u32,
    /// `R`, `S`, `T` (stopped), `Z` (ended, not waited for), …
    pub state: char,
    /// Its argv, joined with spaces; empty for a zombie.
    pub command: String,
}

impl Process {
    /// The process of this number, unless it has gone.
    #[must_use]
    pub fn open(pid: u32) -> Option<Self> {
        let raw = Pid::from_raw(i32::try_from(pid).ok()?)?;
        Some(Self { pid, pidfd: pidfd_open(raw, PidfdFlags::empty()).ok()? })
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for its end, at most [`DEADLINE`].
    ///
    /// # Panics
    /// It goes on.
    #[track_caller]
    pub fn wait(&self) {
        if !self.wait_until(Deadline::after(DEADLINE)) {
            fail(&format!("process {} ({}) did not end", self.pid, command(self.pid)));
        }
    }

    /// Waits for its end; false if it had not ended by the deadline.
    #[must_use]
    pub fn wait_until(&self, deadline: Deadline) -> bool {
        deadline.readable(&self.pidfd)
    }

    /// Whether it goes on.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !self.wait_until(Deadline::after(std::time::Duration::ZERO))
    }

    /// Sends it a signal; one that has ended gets none.
    pub fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// Kills it and waits for its end.
    #[track_caller]
    pub fn kill(&self) {
        self.signal(Signal::KILL);
        self.wait();
    }

    /// What it takes now.
    ///
    /// # Panics
    /// It has ended.
    #[track_caller]
    #[must_use]
    pub fn memory(&self) -> Memory {
        let read = |name| fs::read_to_string(format!("/proc/{}/{name}", self.pid));
        let status = read("status").expect("a process that runs has a status");
        let smaps = read("smaps_rollup").expect("a process that runs has a memory map");
        Memory {
            peak: kibibytes(&status, "VmHWM:"),
            resident: kibibytes(&status, "VmRSS:"),
            proportional: kibibytes(&smaps, "Pss:"),
        }
    }

    /// How many descriptors it has open.
    ///
    /// # Panics
    /// It has ended.
    #[must_use]
    pub fn open_descriptors(&self) -> usize {
        let listed = fs::read_dir(format!("/proc/{}/fd", self.pid));
        listed.expect("a process that runs has descriptors").count()
    }
}

impl AsFd for Process {
    /// The pidfd: readable once the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

#[track_caller]
fn kibibytes(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    let number = line.trim().trim_end_matches(" kB").parse::<u64>();
    number.expect("the kernel says so many kB") * 1024
}

/// Every process there is.
#[must_use]
pub fn all() -> Vec<Entry> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(entry).collect()
}

/// One process of the table, unless it has gone.
#[must_use]
pub fn entry(pid: u32) -> Option<Entry> {
    // proc_pid_stat(5): the name in parentheses may hold anything, parentheses too.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    Some(Entry { pid, parent, state, command: command(pid) })
}

/// The argv of a process, joined with spaces.
#[must_use]
pub fn command(pid: u32) -> String {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<_> = words.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    words.join(" ").trim_end().to_owned()
}

/// Everything that descends from `root`, which is left out; zombies too.
#[must_use]
pub fn descendants(root: u32) -> Vec<Entry> {
    let all = all();
    let mut found: BTreeSet<u32> = BTreeSet::from([root]);
    loop {
        let count = found.len();
        let parents = found.clone();
        found.extend(all.iter().filter(|e| parents.contains(&e.parent)).map(|entry| entry.pid));
        if found.len() == count {
            break;
        }
    }
    all.into_iter().filter(|entry| entry.pid != root && found.contains(&entry.pid)).collect()
}

/// Kills everything below `root` until nothing is left. `root` must be a subreaper that reaps, or
/// this never ends.
pub fn kill_descendants(root: u32) {
    loop {
        let living: Vec<_> = descendants(root).into_iter().filter(|e| e.state != 'Z').collect();
        if living.is_empty() {
            return;
        }
        for entry in living {
            if let Some(process) = Process::open(entry.pid) {
                process.signal(Signal::KILL);
                let _ = process.wait_until(Deadline::after(DEADLINE));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_seen_and_its_end_too() {
        let mut child = std::process::Command::new("sleep").arg("300").spawn().unwrap();
        let found = descendants(std::process::id());
        assert!(found.iter().any(|entry| entry.pid == child.id() && entry.command == "sleep 300"));
        let process = Process::open(child.id()).unwrap();
        assert!(process.is_running());
        assert!(process.memory().peak > 0);
        process.kill();
        assert!(!process.is_running());
        child.wait().unwrap();
    }
}
