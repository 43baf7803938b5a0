//! `afar demo`: the whole system in one command, and nothing of it left afterwards.

use std::path::Path;

use afar_e2e::{Home, Run, Running};
use rustix::process::Signal;

/// A demo whose temporary files are in a directory of the test's, below a reaper: waiting for it
/// waits for everything that it has started.
fn demo(home: &Home, arguments: &[&str]) -> Run {
    let temporary = home.file("tmp");
    // It may be there from the demo before.
    let _ = std::fs::create_dir(&temporary);
    let run = home.afar(["demo"].iter().chain(arguments)).env("TMPDIR", temporary).reaped();
    run.within(std::time::Duration::from_secs(20))
}

/// Nothing was written into the home, and nothing was left of what was temporary.
#[track_caller]
fn assert_clean(home: &Home) {
    let list = |path: &Path| -> Vec<_> {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    assert_eq!(list(&home.file("tmp")), [] as [&Path; 0]);
    assert_eq!(list(&home.file("run")), [] as [&Path; 0]);
    assert_eq!(list(&home.file("home")), [home.file("home/.ssh")]);
    let ssh = list(&home.file("home/.ssh"));
    assert_eq!(ssh.len(), 2, "only the test's own key is there: {ssh:?}");
}

#[test]
fn the_command_of_the_readme_shows_both_lines_and_ends_with_its_status() {
    let home = Home::new();
    let output = demo(&home, &["--", "sh", "-c", "echo out; echo err >&2; exit 3"]).output();
    assert_eq!(output.expect_code(3).text(), "out\n");
    assert!(output.error_text().lines().any(|line| line == "err"), "{output:?}");
    assert_clean(&home);
}

#[test]
fn a_script_and_stdin_work_too() {
    let home = Home::new();
    let output = demo(&home, &["-q", "-c", "echo \"$((1+1))\"; cat"]).stdin("in").output();
    assert_eq!(output.success().text(), "2\nin");
    assert_eq!(output.error_text(), "");
    assert_clean(&home);
}

#[test]
fn what_can_not_be_started_is_said_and_cleaned_up() {
    let home = Home::new();
    let output = demo(&home, &["-q", "--", "afar-no-such-program"]).output();
    assert!(output.expect_code(127).error_text().contains("not found"), "{output:?}");
    assert_clean(&home);
}

fn sleeping(home: &Home) -> Running {
    let mut client = demo(home, &["-c", "setsid sleep 302 & echo ready; sleep 301"]).spawn();
    assert_eq!(client.line().as_deref(), Some("ready"));
    client
}

#[test]
fn an_interrupted_demo_ends_its_command_and_cleans_up() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let home = Home::new();
        let client = sleeping(&home);
        client.signal(signal);
        let output = client.wait();
        assert_eq!(output.expect_code(128 + signal.as_raw()).text(), "ready\n");
        assert_clean(&home);
    }
}

#[test]
fn what_the_command_leaves_running_is_ended_with_the_demo() {
    let home = Home::new();
    // One that ignores TERM, one in a session of its own, an orphan.
    let script = "(trap '' TERM; exec sleep 301) & setsid sleep 302 & (sleep 303 &) ; echo done";
    let output = demo(&home, &["-c", script]).output();
    assert_eq!(output.success().text(), "done\n");
    assert_clean(&home);
}

#[test]
fn two_demos_at_once_do_not_meet() {
    let home = Home::new();
    let other = Home::new();
    let first = sleeping(&home);
    let output = demo(&other, &["--", "echo", "second"]).output();
    assert_eq!(output.success().text(), "second\n");
    assert_clean(&other);
    first.signal(Signal::TERM);
    assert_ne!(first.wait().code(), 0);
    assert_clean(&home);
}
