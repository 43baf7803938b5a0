//! Tests of what is confined: the same promises as for every process, and what holds it in.

use super::*;
use crate::cgroup::{Delegation, GroupLimits};
use crate::child::ExitStatus;
use crate::resolve::diagnose;
use crate::rig::{Cgroup, Options, Running, alone, proc_file};
use crate::users::effective_uid;
use rustix::process::{getegid, getsid};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;

const FREE: Confinement<'static> = Confinement { cgroup: None, limits: &[] };

fn confined(
    program: &str,
    argv: &[&str],
    confinement: Confinement<'_>,
) -> Result<Running, SpawnError> {
    let options = Options { confinement: Some(confinement), ..Options::default() };
    Running::with(program, argv, &["ONLY=this"], options)
}

#[test]
fn output_and_status_come_back() {
    let mut running =
        confined("/bin/sh", &["sh", "-c", "echo out; echo err >&2; exit 44"], FREE).unwrap();
    assert_eq!(running.rest_of_stdout(), "out\n");
    assert_eq!(running.rest_of_stderr(), "err\n");
    assert_eq!(running.wait().status, ExitStatus::Exited { code: 44 });
}

#[test]
fn fault_64_a_confined_child_inherits_what_any_child_does() {
    const NAME: &str =
        "spawn::confined::tests::fault_64_a_confined_child_inherits_what_any_child_does";
    if !alone(NAME) {
        return;
    }
    let leaked = rustix::io::dup(std::fs::File::open("/dev/null").unwrap()).unwrap();
    let mut blocked = [0; SIGNAL_SET_WORDS];
    set_signal_mask(&[u64::MAX; SIGNAL_SET_WORDS], &mut blocked).unwrap();
    for signal in [libc::SIGUSR1, libc::SIGHUP, libc::SIGINT, libc::SIGPIPE, libc::SIGRTMIN()] {
        // SAFETY: an ignored signal runs no handler.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    let mut running = confined("/bin/cat", &["cat", "-"], FREE).unwrap();
    running.stdin.as_mut().unwrap().write_all(b"ready\n").unwrap();
    assert_eq!(running.line(), "ready");
    let pid = running.pid();
    let listed = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let mut numbers: Vec<_> = listed.map(|entry| entry.unwrap().file_name()).collect();
    numbers.sort();
    assert_eq!(numbers, ["0", "1", "2"]);
    let status = proc_file(pid, "status");
    for name in ["SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd"] {
        let line = format!("{name}:\t0000000000000000");
        assert!(status.lines().any(|found| found == line), "{status}");
    }
    let mark = running.mark.to_str().unwrap();
    assert_eq!(proc_file(pid, "environ"), format!("ONLY=this\0{mark}\0"));
    assert_eq!(proc_file(pid, "cmdline"), "cat\0-\0");
    assert_eq!(getsid(Pid::from_raw(pid)).ok(), Pid::from_raw(pid));
    // And we are as before.
    let mut mask = [0; SIGNAL_SET_WORDS];
    set_signal_mask(&[0; SIGNAL_SET_WORDS], &mut mask).unwrap();
    assert_eq!(mask[0].count_ones(), 62, "all but KILL and STOP");
    drop(leaked);
}

#[test]
fn it_leaves_our_memory_and_our_descriptors_alone() {
    // The child and this thread have one memory: what it does must not show here.
    let before = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let text = String::from("kept");
    for code in 0..50 {
        let script = format!("exit {code}");
        let mut running = confined("/bin/sh", &["sh", "-c", &script], FREE).unwrap();
        assert_eq!(running.wait().status, ExitStatus::Exited { code });
    }
    assert_eq!(text, "kept");
    // Other tests open and close theirs meanwhile, but not fifty.
    assert!(std::fs::read_dir("/proc/self/fd").unwrap().count() < before + 45);
}

#[test]
fn fault_48_what_can_not_be_executed_says_why_and_leaves_no_zombie() {
    const NAME: &str =
        "spawn::confined::tests::fault_48_what_can_not_be_executed_says_why_and_leaves_no_zombie";
    if !alone(NAME) {
        return;
    }
    for (program, error) in [
        ("/nonexistent/program", Errno::NOENT),
        ("/etc/passwd", Errno::ACCESS),
        ("/", Errno::ACCESS),
    ] {
        let refused = confined(program, &["x"], FREE).err().unwrap();
        assert_eq!(refused, SpawnError::NotStarted(error), "{program}");
    }
    let options =
        Options { cwd: Some(c"/nonexistent"), confinement: Some(FREE), ..Options::default() };
    let refused = Running::with("/bin/true", &["true"], &[], options).err().unwrap();
    assert_eq!(refused, SpawnError::NotStarted(Errno::NOENT));
    let why = diagnose(Errno::NOENT, Path::new("/bin/true"), Path::new("/nonexistent"));
    assert!(why.to_string().contains("/nonexistent"), "{why}");
    // SAFETY: a null status is allowed.
    let code = unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) };
    assert_eq!((code, errno::last()), (-1, Errno::CHILD), "something was left to be waited for");
}

#[test]
fn fault_57_what_one_process_may_allocate_is_limited() {
    // Half a gibibyte in an interpreter of a few megabytes, under a limit of 64.
    let limits = [(Limit::Data, 64 << 20)];
    let allocate = "try: bytearray(1 << 29)\nexcept MemoryError: print('refused')";
    let confinement = Confinement { cgroup: None, limits: &limits };
    let mut running =
        confined("/usr/bin/python3", &["python3", "-c", allocate], confinement).unwrap();
    assert_eq!(running.rest_of_stdout(), "refused\n");
    let mut running = confined("/bin/cat", &["cat"], confinement).unwrap();
    running.stdin.as_mut().unwrap().write_all(b"ready\n").unwrap();
    assert_eq!(running.line(), "ready");
    let shown = proc_file(running.pid(), "limits");
    let line = shown.lines().find(|line| line.starts_with("Max data size")).unwrap();
    assert_eq!(line.split_whitespace().filter(|word| *word == "67108864").count(), 2, "{line}");
}

#[test]
fn its_limit_of_descriptors_is_the_one_that_was_asked_for() {
    let options =
        Options { open_files_soft: Some(77), confinement: Some(FREE), ..Options::default() };
    let argv = ["sh", "-c", "ulimit -n"];
    let mut running = Running::with("/bin/sh", &argv, &[], options).unwrap();
    assert_eq!(running.rest_of_stdout(), "77\n");
}

#[test]
fn it_is_born_in_its_cgroup_with_whatever_it_starts() {
    let Some(cgroup) = Cgroup::new() else { return };
    let slice = Delegation::of(&cgroup.path).unwrap();
    let slice = slice.slice(effective_uid(), getegid().as_raw()).unwrap();
    let group = slice.group("born", &GroupLimits::default()).unwrap();
    let confinement = Confinement { cgroup: Some(group.as_fd()), limits: &[] };
    let script = "while read -r line; do case $line in 0::*) echo \"$line\";; \
                  esac; done </proc/self/cgroup; setsid sleep 300 & echo $!; wait";
    let mut running = confined("/bin/sh", &["sh", "-c", script], confinement).unwrap();
    let place = running.line();
    assert!(place.ends_with("/job-born"), "{place}");
    let child: i32 = running.line().parse().unwrap();
    let mut pids: Vec<_> = group.processes().unwrap().iter().map(|process| process.pid).collect();
    pids.sort_unstable();
    let mut expected = [running.pid(), child];
    expected.sort_unstable();
    assert_eq!(pids, expected);
    assert!(group.is_populated());
    group.kill().unwrap();
    assert!(matches!(running.wait().status, ExitStatus::Signaled { .. }));
    running.rest_of_stdout();
}

#[test]
fn a_cgroup_that_is_gone_starts_nothing() {
    let Some(cgroup) = Cgroup::new() else { return };
    let slice = Delegation::of(&cgroup.path).unwrap();
    let slice = slice.slice(effective_uid(), getegid().as_raw()).unwrap();
    let group = slice.group("gone", &GroupLimits::default()).unwrap();
    assert!(group.remove());
    let confinement = Confinement { cgroup: Some(group.as_fd()), limits: &[] };
    let refused = confined("/bin/true", &["true"], confinement).err().unwrap();
    assert_eq!(refused, SpawnError::NotStarted(Errno::NODEV));
}
