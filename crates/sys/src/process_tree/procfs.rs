//! Reads the process table: one pass over `/proc`, and single facts about one process.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};

/// The kernel's bound of argv and environment together is 6 MiB; nothing longer is worth reading.
const ENVIRONMENT_BYTES_MAX: u64 = 8 << 20;

/// How often an environment is looked for that an exec hides. An exec takes well under a
/// millisecond, a look some microseconds.
const EXEC_ATTEMPTS_MAX: usize = 2000;
/// `PF_EXITING` and `PF_KTHREAD` in field 9 of `/proc/PID/stat`.
const FLAG_EXITING: u64 = 0x0000_0004;
const FLAG_KERNEL_THREAD: u64 = 0x0020_0000;

/// One process and no other: a pid comes back, but not with the same start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId {
    /// The process id.
    pub pid: i32,
    /// Its start, in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start_ticks: u64,
}

/// What `/proc/PID/stat` says about a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Which one.
    pub id: ProcessId,
    /// The pid of its parent.
    pub parent: i32,
    /// The id of its session.
    pub session: i32,
    /// The letter of its first thread's state: `R`, `S`, `D` (cannot be killed now), `T` (stopped),
    /// `Z` (ended), …
    pub state: char,
    /// How many threads have not ended, the first one always counted.
    pub threads: u32,
}

impl Process {
    /// Whether it still runs, or could: a zombie only waits to be reaped. But one whose first thread
    /// has ended while others go on looks like a zombie, too.
    pub fn is_alive(&self) -> bool {
        !matches!(self.state, 'Z' | 'X' | 'x') || self.threads > 1
    }
}

/// All processes that `/proc` shows. Those that come or go during the pass may be missing.
pub(super) fn processes() -> io::Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let pid = name.to_str().and_then(|name| name.parse().ok());
        if let Some(process) = pid.and_then(process) {
            found.push(process);
        }
    }
    Ok(found)
}

/// The children of a process of one thread, with those that have ended and that it has not waited
/// for. `None` where the process is gone, and where the kernel keeps no such list
/// (`CONFIG_PROC_CHILDREN`).
pub(super) fn children_of(pid: i32) -> Option<BTreeSet<i32>> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    Some(list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect())
}

/// How many threads all processes of a user have together, zombies with their one included: what
/// `RLIMIT_NPROC` counts (getrlimit(2)), as far as `/proc` shows it.
///
/// # Errors
/// What reading the directory `/proc` gives.
pub fn threads_of_user(uid: u32) -> io::Result<u64> {
    let threads = processes()?.into_iter().filter_map(|process| {
        let status = fs::read_to_string(format!("/proc/{}/status", process.id.pid)).ok()?;
        let real = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
        let is_users = real.split_ascii_whitespace().next()?.parse() == Ok(uid);
        is_users.then_some(u64::from(process.threads.max(1)))
    });
    Ok(threads.sum())
}

/// The start time of the process that has this pid now.
pub(super) fn start_ticks_of(pid: i32) -> Option<u64> {
    process(pid).map(|process| process.id.start_ticks)
}

/// Whether the environment that the process was started with has exactly this entry. `false` also
/// where we may not read it: such a process we may not signal either.
pub(super) fn environment_has(pid: i32, entry: &[u8]) -> bool {
    !entry.is_empty() && environment_entry(pid, |found| found == entry).is_some()
}

/// The first entry that is wanted of the environment that the process was started with.
pub(super) fn environment_entry(pid: i32, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
    for _ in 0..EXEC_ATTEMPTS_MAX {
        let environment = environment(pid)?;
        if !environment.is_empty() {
            let found = environment.split(|byte| *byte == 0).find(|entry| wanted(entry));
            return found.map(<[u8]>::to_vec);
        }
        // An exec exchanges the memory first and fills in where the environment is last; in between
        // there is none to read, though the mark is on its way.
        if !is_amid_exec(pid) {
            return None;
        }
        std::thread::yield_now();
    }
    None
}

/// `None` where there is no such process, or where we may not look.
fn environment(pid: i32) -> Option<Vec<u8>> {
    let file = File::open(format!("/proc/{pid}/environ")).ok()?;
    let mut environment = Vec::new();
    file.take(ENVIRONMENT_BYTES_MAX).read_to_end(&mut environment).ok()?;
    Some(environment)
}

/// Whether a process whose environment was found empty only seemed to have none.
fn is_amid_exec(pid: i32) -> bool {
    let Some(stat) = stat_line(pid) else { return false };
    let field = |number: usize| fields_after_name(&stat)?.nth(number - 3)?.parse::<u64>().ok();
    let (Some(flags), Some(start), Some(end)) = (field(9), field(50), field(51)) else {
        return false;
    };
    let has_memory = flags & (FLAG_KERNEL_THREAD | FLAG_EXITING) == 0;
    has_memory && (end == 0 || start != end)
}

fn process(pid: i32) -> Option<Process> {
    parse_stat(pid, &stat_line(pid)?)
}

fn stat_line(pid: i32) -> Option<Vec<u8>> {
    fs::read(format!("/proc/{pid}/stat")).ok()
}

fn parse_stat(pid: i32, stat: &[u8]) -> Option<Process> {
    let mut fields = fields_after_name(stat)?;
    // Fields 3, 4, 6, 20 and 22. `nth` counts from the field after the last one taken.
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    let threads = fields.nth(13)?.parse().ok()?;
    let start_ticks = fields.nth(1)?.parse().ok()?;
    Some(Process { id: ProcessId { pid, start_ticks }, parent, session, state, threads })
}

/// Field 3 and those that follow. The second is the program's name in parentheses, with any bytes
/// in it, closing parentheses and blanks too; after the last closing parenthesis all is plain.
fn fields_after_name(stat: &[u8]) -> Option<std::str::SplitAsciiWhitespace<'_>> {
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    Some(std::str::from_utf8(stat.get(name_end + 1..)?).ok()?.split_ascii_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_program_name_does_not_shift_the_fields() {
        let stat = b"7 (a) Z 1 1 (\n) S 3 5 9 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 12345 99 1\n";
        let expected = Process {
            id: ProcessId { pid: 7, start_ticks: 12345 },
            parent: 3,
            session: 9,
            state: 'S',
            threads: 1,
        };
        assert_eq!(parse_stat(7, stat), Some(expected));
    }

    #[test]
    fn a_process_whose_first_thread_has_ended_is_alive() {
        let stat =
            |threads: u32| format!("7 (a) Z 3 5 9 0 -1 0 0 0 0 0 0 0 0 0 20 0 {threads} 0 1");
        assert!(parse_stat(7, stat(2).as_bytes()).unwrap().is_alive());
        assert!(!parse_stat(7, stat(1).as_bytes()).unwrap().is_alive());
    }

    #[test]
    fn a_damaged_line_is_no_process() {
        for stat in [&b""[..], b"7", b"7 (a)", b"7 (a) S 3 5 9", b"7 (a) S x 5 9 0 -1"] {
            assert_eq!(parse_stat(7, stat), None);
        }
    }

    #[test]
    fn an_environment_that_is_truly_empty_is_no_exec() {
        let mut running =
            crate::rig::Running::script("exec env -i /bin/sh -c 'echo ready; read line'");
        assert_eq!(running.line(), "ready");
        assert_eq!(environment(running.pid()).unwrap(), b"");
        assert!(!is_amid_exec(running.pid()));
    }

    #[test]
    fn we_find_ourselves() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let ours = processes().unwrap().into_iter().find(|p| p.id.pid == pid).unwrap();
        assert_eq!(ours.parent, i32::try_from(std::os::unix::process::parent_id()).unwrap());
        assert_eq!(Some(ours.id.start_ticks), start_ticks_of(pid));
        assert!(ours.is_alive() && ours.threads >= 1);
    }

    #[test]
    fn threads_of_a_user_are_counted_one_by_one() {
        let ours = crate::users::effective_uid();
        let before = threads_of_user(ours).unwrap();
        assert!(
            before
                >= u64::from(process(i32::try_from(std::process::id()).unwrap()).unwrap().threads)
        );
        assert_eq!(threads_of_user(4_123_456_789).unwrap(), 0);
    }

    #[test]
    fn an_environment_entry_is_matched_as_a_whole() {
        let entry = fs::read("/proc/self/environ").unwrap();
        let first = entry.split(|byte| *byte == 0).next().unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(environment_has(pid, first));
        assert!(!environment_has(pid, &first[..first.len() - 1]));
        assert!(!environment_has(pid, b""));
    }
}
