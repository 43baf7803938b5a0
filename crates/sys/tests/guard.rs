//! A guardian and what it guards: each scenario in a process of its own, which has one thread.

#![expect(clippy::panic, clippy::print_stdout, clippy::exit, reason = "a harness of its own")]

use std::process::{Command, Stdio, exit};
use std::time::{Duration, Instant};

use afar_sys::child::ExitStatus;
use afar_sys::guard::{Guard, GuardEvent, Split, split};
use afar_sys::process_tree::{find_descendants, signal_process};
use afar_sys::signals::Signal;
use rustix::process::{Pid, getpid, getppid, kill_process};

const SCENARIOS: [(&str, fn()); 3] = [
    ("learns_the_end_and_inherits_what_is_left", learns_the_end_and_inherits_what_is_left),
    ("passes_on_what_it_is_told", passes_on_what_it_is_told),
    ("an_end_in_order_is_told_as_it_was", an_end_in_order_is_told_as_it_was),
];

/// Like the harness's: arguments choose scenarios, and `--list` names them.
fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [alone, name] = &arguments[..]
        && alone == "--alone"
    {
        let scenario = SCENARIOS.iter().find(|scenario| scenario.0 == name);
        return scenario.expect("it is one of ours").1();
    }
    let filters: Vec<_> = arguments.iter().filter(|word| !word.starts_with('-')).collect();
    for (name, _) in SCENARIOS {
        if arguments.iter().any(|word| word == "--list") {
            println!("{name}: test");
        } else if filters.is_empty() || filters.iter().any(|filter| name.contains(*filter)) {
            let program = std::env::current_exe().expect("we run");
            let status = Command::new(program).args(["--alone", name]).status();
            assert!(status.expect("we can be run again").success(), "{name} failed");
            println!("test {name} ... ok");
        }
    }
}

/// Splits; the guarded half does something and ends.
fn guarding(guarded: impl FnOnce() -> i32) -> Guard {
    match split(c"afar-test-guard", c"afar-test").expect("there is one thread") {
        Split::Guardian(guard) => guard,
        Split::Guarded => exit(guarded()),
    }
}

fn send(to: Option<Pid>, signal: rustix::process::Signal) {
    kill_process(to.expect("it is there"), signal).expect("it is ours");
}

fn learns_the_end_and_inherits_what_is_left() {
    let mut guard = guarding(|| {
        let mut leaving = Command::new("/bin/sh");
        // No pipe: whoever reads one to its end waits for the sleeper.
        leaving.args(["-c", "setsid sleep 300 &"]).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(leaving.status().expect("there is a shell").success());
        send(Some(getpid()), rustix::process::Signal::KILL);
        0
    });
    let GuardEvent::Ended(Some(ended)) = guard.wait() else { panic!("nobody has told it") };
    assert_eq!(ended.status, ExitStatus::Signaled { signal: Signal::KILL, core: false });
    let left = find_descendants().expect("/proc can be read");
    let [left] = &left[..] else { panic!("{left:?}") };
    assert!(left.id.start_ticks <= guard.unreaped_until_ticks() + 1);
    signal_process(left.id, Signal::KILL).expect("it is ours");
    let nobody = || find_descendants().is_ok_and(|left| left.is_empty());
    let deadline = Instant::now() + Duration::from_secs(60);
    while !nobody() {
        assert!(Instant::now() < deadline);
        guard.pause(Duration::from_secs(60));
    }
}

fn passes_on_what_it_is_told() {
    let mut guard = guarding(|| {
        // Blocked in the guardian; here it has its default action.
        send(getppid(), rustix::process::Signal::TERM);
        loop {
            std::thread::park();
        }
    });
    let GuardEvent::Told(signal) = guard.wait() else { panic!("not told") };
    assert_eq!(signal, Signal::TERM);
    guard.pass_on(signal);
    let GuardEvent::Ended(Some(ended)) = guard.wait() else { panic!("it goes on") };
    assert_eq!(ended.status, ExitStatus::Signaled { signal: Signal::TERM, core: false });
    // Nobody is hit any more.
    guard.pass_on(signal);
}

fn an_end_in_order_is_told_as_it_was() {
    let mut guard = guarding(|| 7);
    let GuardEvent::Ended(Some(ended)) = guard.wait() else { panic!("not ended") };
    assert_eq!(ended.status, ExitStatus::Exited { code: 7 });
    guard.pause(Duration::ZERO);
}
