//! Tests of finding and signalling a tree of processes.

use super::*;
use crate::child::ExitStatus;
use crate::rig::{Running, alone, until_readable};
use std::io::Write;

/// Says "ready" only when all that the script has started runs.
fn ready(script: &str) -> Running {
    let mut running = Running::script(script);
    assert_eq!(running.line(), "ready");
    running
}

fn own_id(running: &Running) -> ProcessId {
    let tree = find_tree(&running.child.tree_root(), running.mark.as_bytes()).unwrap();
    tree.into_iter().find(|process| process.id.pid == running.pid()).unwrap().id
}

#[test]
fn the_tree_holds_the_process_itself_and_nobody_else() {
    let one = ready("echo ready; read line");
    let two = ready("echo ready; read line");
    assert_eq!(one.tree(), [one.pid()]);
    assert_eq!(two.tree(), [two.pid()]);
}

#[test]
fn everything_below_us_is_found_and_no_zombie() {
    let running = ready("sleep 1000 & setsid sleep 1000 & echo ready; wait");
    let mut gone = ready("echo ready; exit 0");
    until_readable(&gone.child);
    let below = find_descendants().unwrap();
    let is_below = |pid: i32| below.iter().any(|process| process.id.pid == pid);
    assert!(running.tree().into_iter().all(is_below));
    assert_eq!(running.tree().len(), 3);
    assert!(!is_below(getpid().as_raw_pid()) && !is_below(gone.pid()));
    gone.wait();
    running.kill_tree(Signal::KILL);
}

#[test]
fn fault_35_what_left_the_session_is_found_by_its_mark() {
    // Both forks of a daemon: the subshell is its parent and ends at once.
    let mut running = ready("(setsid sleep 1000 &); (setsid sleep 1000 &); echo ready; read line");
    assert_eq!(running.tree().len(), 3);
    let report = running.kill_tree(Signal::KILL);
    assert!(report.settled && report.refused.is_empty(), "{report:?}");
    // The end of stdout is the death of all that held it.
    assert_eq!(running.rest_of_stdout(), "");
}

#[test]
fn what_lost_the_mark_is_found_by_the_session_or_by_its_parent() {
    let mut running = ready(
        "env -i sleep 1000 & setsid env -i /bin/sh -c 'sleep 1000; :' & sleep 0; echo ready; wait",
    );
    running.kill_tree(Signal::KILL);
    assert_eq!(running.rest_of_stdout(), "");
}

#[test]
fn fault_35_stragglers_of_a_reaped_process_are_found_by_its_session() {
    let mut running = ready("env -i sleep 1000 & echo ready; exit 5");
    assert_eq!(running.wait().status, ExitStatus::Exited { code: 5 });
    assert_eq!(running.tree().len(), 1);
    assert_eq!(running.kill_tree(Signal::TERM).signalled, 1);
    assert_eq!(running.rest_of_stdout(), "");
}

#[test]
fn a_session_number_that_went_to_somebody_else_is_left_alone() {
    let stranger = ready("echo ready; read line");
    let started = own_id(&stranger).start_ticks;
    // A root of the same number, reaped before the stranger started.
    let root = TreeRoot {
        pid: stranger.pid(),
        leads_session: true,
        started_ticks: started - 1,
        reaped_ticks: Some(started - 1),
    };
    assert_eq!(find_tree(&root, b"AFAR_JOB_ID=none").unwrap(), []);
    // The same number while it was surely still the root's.
    let root = TreeRoot::of_lost_job(stranger.pid(), started, now_ticks());
    assert_eq!(find_tree(&root, b"AFAR_JOB_ID=none").unwrap().len(), 1);
}

#[test]
fn a_pid_that_went_to_somebody_else_is_not_signalled() {
    let mut stranger = ready("echo ready; read line; echo alive");
    let id = own_id(&stranger);
    let earlier = ProcessId { start_ticks: id.start_ticks - 1, ..id };
    assert_eq!(signal_process(earlier, Signal::KILL), Err(Errno::SRCH));
    stranger.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    assert_eq!(stranger.line(), "alive");
}

#[test]
fn fault_36_who_ignores_term_or_is_stopped_still_meets_kill() {
    let mut running = ready(
        "trap '' TERM; sleep 1000 & sh -c 'kill -STOP $$' & echo ready; while :; do wait; done",
    );
    assert!(running.kill_tree(Signal::TERM).settled);
    assert!(running.tree().contains(&running.pid()), "TERM was to be ignored");
    assert!(running.kill_tree(Signal::KILL).settled);
    assert_eq!(running.rest_of_stdout(), "");
    let ended = running.wait().status;
    assert_eq!(ended, ExitStatus::Signaled { signal: Signal::KILL, core: false });
}

#[test]
fn a_tree_that_grows_while_it_is_killed_leaves_nobody() {
    // Half of them are tied to the tree by the mark only, half by their parent only.
    let mut running = ready(
        "echo ready; i=0; while [ $i -lt 300 ]; do \
         (setsid sleep 1000 &); setsid env -i sleep 1000 & i=$((i+1)); done; wait",
    );
    assert!(running.kill_tree(Signal::KILL).settled);
    assert_eq!(running.rest_of_stdout(), "");
}

#[test]
fn we_are_never_part_of_a_tree() {
    let environment = std::fs::read("/proc/self/environ").unwrap();
    let our_entry = environment.split(|byte| *byte == 0).next().unwrap();
    let root = TreeRoot::of_lost_job(i32::MAX, 0, 0);
    let our_pid = i32::try_from(std::process::id()).unwrap();
    let found = find_tree(&root, our_entry).unwrap();
    assert!(found.iter().all(|process| process.id.pid != our_pid));
}

#[test]
fn fault_37_adopted_orphans_are_reaped_and_our_children_are_not() {
    if !alone("process_tree::tests::fault_37_adopted_orphans_are_reaped_and_our_children_are_not") {
        return;
    }
    set_child_subreaper().unwrap();
    assert_eq!(reap_adopted(|_| false), Ok(0));

    // The orphan holds a copy of stdin as 3, because the shell gives background jobs no stdin.
    let mut running = ready("exec 3<&0; (cat <&3 >/dev/null & echo ready)");
    running.wait();
    let orphan = processes()
        .unwrap()
        .into_iter()
        .find(|process| process.session == running.pid() && process.is_alive())
        .unwrap();
    assert_eq!(orphan.parent, getpid().as_raw_pid());
    let orphan_pidfd =
        pidfd_open(Pid::from_raw(orphan.id.pid).unwrap(), PidfdFlags::empty()).unwrap();

    let mut ours = Running::script("exit 7");
    until_readable(&ours.child);
    let our_pid = ours.pid();
    assert_eq!(reap_adopted(|pid| pid == our_pid), Ok(0));
    assert_eq!(ours.wait().status, ExitStatus::Exited { code: 7 });

    running.stdin = None;
    until_readable(&orphan_pidfd);
    assert_eq!(reap_adopted(|_| false), Ok(1));
    assert!(processes().unwrap().iter().all(|process| process.id != orphan.id));
}

/// A shell that has left a process, a part of itself and a daemon running, and then has been given a
/// command with a mark, which has started a process with it, one with another one, one without any,
/// and a part of the shell. Meanwhile the daemon has started a process and has gone.
fn shell_with_a_command() -> (Running, CommandRoot) {
    let mut running = ready(
        "sleep 1000 & (sleep 1000; :) & \
         COMMAND=old sh -c 'trap \"sleep 1000 & exit\" USR1; echo ready; while :; do :; done' & \
         read line; export COMMAND=new; kill -USR1 $!; wait $!; \
         COMMAND=old sleep 1000 & sleep 1000 & env -i sleep 1000 & (sleep 1000; :) & \
         (setsid sleep 1000 &); echo ready; wait; wait",
    );
    let started = now_ticks();
    while now_ticks() == started {
        std::thread::yield_now();
    }
    let pidfd = running.child.pidfd().try_clone_to_owned().unwrap();
    let shell = running.child.tree_root();
    let command = CommandRoot::new(shell, pidfd.into(), b"COMMAND=new".to_vec());
    running.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    assert_eq!(running.line(), "ready");
    // Three sleeps, the part of the shell with its sleep, and the daemon; the shell says that it has
    // forked them all, and they exec a little later.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    let sleeping = |found: &[Process]| {
        let comm = |p: &&Process| std::fs::read(format!("/proc/{}/comm", p.id.pid));
        found.iter().filter(|p| comm(p).is_ok_and(|comm| comm == b"sleep\n")).count()
    };
    let all_exec = |found: &[Process]| found.len() == 6 && sleeping(found) == 5;
    while !all_exec(&command.find().unwrap()) && std::time::Instant::now() < deadline {
        std::thread::yield_now();
    }
    (running, command)
}

#[test]
fn a_command_of_a_shell_is_told_apart_from_the_shell_and_older_commands() {
    let (mut running, command) = shell_with_a_command();
    let found = command.find().unwrap();
    assert_eq!(found.len(), 6, "{found:?}");
    assert!(found.iter().all(|process| process.id.pid != running.pid()));
    let report = command.kill(Signal::KILL).unwrap();
    assert!(report.settled && report.refused.is_empty(), "{report:?}");
    // They were killed, and die in their own time.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !command.find().unwrap().is_empty() && std::time::Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert_eq!(command.find().unwrap(), []);
    // The shell, two of before (one of them with a child), and what the older daemon has started.
    assert_eq!(running.tree().len(), 5);
    running.kill_tree(Signal::KILL);
    assert_eq!(running.rest_of_stdout(), "");
}

#[test]
fn children_of_a_shell_are_told_apart_by_what_was_there_and_not_by_the_clock() {
    // With a mark that says nothing, and no time between them.
    let mut running = ready("sleep 1000 & echo ready; read line; sleep 1000 & echo $!; wait");
    let pidfd = running.child.pidfd().try_clone_to_owned().unwrap();
    let shell = running.child.tree_root();
    let command = CommandRoot::new(shell, pidfd.into(), b"AFAR_JOB_ID=another".to_vec());
    running.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    let pid: i32 = running.line().parse().unwrap();
    let found: Vec<_> = command.find().unwrap().iter().map(|process| process.id.pid).collect();
    assert_eq!(found, [pid]);
}

#[test]
fn what_a_command_left_is_found_after_the_shells_end() {
    let (mut running, mut command) = shell_with_a_command();
    command.signal_shell(Signal::KILL).unwrap();
    running.wait();
    command.shell_ended(running.child.tree_root());
    assert_eq!(command.find().unwrap().len(), 6);
    assert_eq!(command.signal_shell(Signal::KILL), Err(Errno::SRCH));
    assert!(command.kill(Signal::KILL).unwrap().settled);
    running.kill_tree(Signal::KILL);
    assert_eq!(running.rest_of_stdout(), "");
}

fn tree_of(running: &Running) -> Tree {
    Tree::new(running.child.tree_root(), running.mark.as_bytes(), None)
}

#[test]
fn fault_35_many_trees_are_found_by_one_look_as_each_is_by_its_own() {
    let daemon = "(setsid sleep 1000 &); env -i sleep 1000 & sleep 1000 & echo ready; read line";
    let mut left = ready("env -i sleep 1000 & echo ready; exit 5");
    left.wait();
    let running = [ready("echo ready; read line"), ready(daemon), ready(daemon), left];
    let mut forest = Forest::new(running.iter().map(tree_of).collect());
    let pids = |found: &[Process]| {
        let mut pids: Vec<i32> = found.iter().map(|process| process.id.pid).collect();
        pids.sort_unstable();
        pids
    };
    for (found, running) in forest.find().unwrap().iter().zip(&running) {
        assert_eq!(pids(found), running.tree());
    }
    let counts: Vec<usize> = forest.seen().iter().map(BTreeSet::len).collect();
    assert_eq!(counts, [1, 4, 4, 1]);
}

#[test]
fn fault_36_in_a_forest_too_who_ignores_term_or_is_stopped_meets_kill() {
    let stubborn = "trap '' TERM; sleep 1000 & echo ready; while :; do sleep 1000; done";
    let mut running =
        [ready(stubborn), ready("echo ready; kill -STOP $$"), ready("echo ready; read l")];
    let others = ready("echo ready; read line");
    let mut forest = Forest::new(running.iter().map(tree_of).collect());
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    forest.kill(Signal::TERM, deadline).unwrap();
    forest.kill(Signal::KILL, deadline).unwrap();
    for running in &mut running {
        assert_eq!(running.rest_of_stdout(), "");
        running.wait();
    }
    assert!(forest.find().unwrap().iter().all(Vec::is_empty));
    assert_eq!(others.tree(), [others.pid()]);
}
