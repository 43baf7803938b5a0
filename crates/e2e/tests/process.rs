//! Processes: signals on their way to a job, and the ends of whole trees.

use std::time::Duration;

use afar_e2e::{Host, Process, Running, Source};
use rustix::process::Signal;
use serde_json::json;

/// A job whose script has said `ready`.
#[track_caller]
fn ready(host: &Host, options: &[&str], script: &str) -> Running {
    let result = host.file("result");
    let result = ["--result", result.to_str().expect("the rig's paths are UTF-8"), "-c", script];
    let mut client = host.run(options.iter().chain(&result)).spawn();
    assert_eq!(client.line().as_deref(), Some("ready"));
    client
}

#[test]
fn fault_39_a_command_that_closes_its_output_and_then_exits_is_waited_for() {
    let host = Host::start();
    let go = host.fifo("go");
    let script = format!("exec >&- 2>&-; read x <{}; exit 44", go.word());
    let mut client = host.script(&script).spawn();
    // Its streams end long before it does: nothing may be made of that.
    assert_eq!(host.run(["--", "true"]).output().code(), 0);
    assert!(client.process().is_running());
    go.release();
    assert_eq!(client.line(), None);
    let output = client.wait();
    assert_eq!(output.expect_code(44).error_text(), "");
    // And the other way round: the words of the promise.
    let output = host.script("exec >&- 2>&-; sleep 1; exit 44").output();
    assert_eq!(output.expect_code(44).error_text(), "");
}

#[test]
fn signals_are_passed_on_and_the_command_decides() {
    let host = Host::start();
    for (signal, name) in [
        (Signal::INT, "INT"),
        (Signal::TERM, "TERM"),
        (Signal::HUP, "HUP"),
        (Signal::QUIT, "QUIT"),
        (Signal::USR1, "USR1"),
        (Signal::USR2, "USR2"),
    ] {
        // The shell runs its trap once its child has ended, which is soon.
        let script = format!(
            "trap 'echo got {name}; exit 9' {name}; echo ready; while :; do sleep 0.05; done"
        );
        let client = ready(&host, &[], &script);
        client.signal(signal);
        let output = client.wait();
        assert_eq!(output.expect_code(9).text(), format!("ready\ngot {name}\n"));
        assert_eq!(host.json("result")["end"], json!({"kind": "exited", "code": 9}));
    }
    host.wait_until_idle();
}

#[test]
fn a_signal_that_the_command_does_not_handle_ends_it_as_that_signal_does() {
    let host = Host::start();
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let client = ready(&host, &[], "echo ready; exec sleep 300");
        client.signal(signal);
        let output = client.wait();
        assert_eq!(output.code(), code);
        let end = host.json("result")["end"].clone();
        assert_eq!((&end["kind"], &end["signal"]), (&json!("signaled"), &json!(code - 128)));
    }
}

#[test]
fn three_interrupts_leave_and_cancel() {
    let host = Host::start();
    let script = "trap 'echo int' INT; setsid sleep 301 & echo ready; \
                  while :; do sleep 0.05; echo tick; done";
    let mut client = ready(&host, &["--kill-after", "200ms"], script);
    // Each one is seen there before the next one is sent: signals of one number that nobody has
    // taken yet are one (signal(7)). A shell may lose one that comes during its trap, hence the
    // ticks; a slow machine needs more than three for three in a second.
    let mut interrupts = 0;
    while client.process().is_running() {
        client.signal(Signal::INT);
        interrupts += 1;
        for _ in 0..20 {
            match client.line().as_deref() {
                Some("tick") => {}
                Some(_) | None => break,
            }
        }
    }
    assert!(interrupts >= 3);
    let output = client.wait();
    assert!(output.expect_code(130).error_text().contains("cancelled"), "{output:?}");
    let outcome = host.json("result");
    let cancelled = json!({"kind": "cancelled"});
    assert_eq!((&outcome["end"], &outcome["started"]), (&cancelled, &json!("yes")));
    host.wait_until_idle();
}

#[test]
fn a_time_limit_ends_the_whole_tree() {
    let host = Host::start();
    // A child, one that has left the session, and one that ignores TERM.
    let script = "sleep 301 & setsid sleep 302 & (trap '' TERM; exec sleep 303) & echo ready; wait";
    let client = ready(&host, &["--timeout", "1s", "--kill-after", "300ms"], script);
    let output = client.wait();
    assert_eq!(output.code(), 124, "{output:?}");
    assert!(output.elapsed < Duration::from_secs(4), "{output:?}");
    host.wait_until_idle();
}

#[test]
fn who_ignores_term_is_killed_after_the_grace() {
    let host = Host::start();
    let script = "trap '' TERM; echo ready; while :; do sleep 300; done";
    let client = ready(&host, &["--timeout", "300ms", "--kill-after", "300ms"], script);
    let output = client.wait();
    assert_eq!(output.code(), 124, "{output:?}");
    assert!(output.elapsed < Duration::from_secs(4), "{output:?}");
    assert_eq!(host.json("result")["end"], json!({"kind": "timeout"}));
    host.wait_until_idle();
}

#[test]
fn a_stopped_command_is_ended_too() {
    let host = Host::start();
    let script = "echo ready; kill -STOP $$; sleep 300";
    let client = ready(&host, &["--timeout", "500ms", "--kill-after", "300ms"], script);
    let output = client.wait();
    assert_eq!(output.code(), 124, "{output:?}");
    host.wait_until_idle();
}

#[test]
fn a_normal_exit_kills_nothing() {
    let host = Host::start();
    let script = "setsid sleep 300 </dev/null >/dev/null 2>&1 & echo $!";
    let output = host.script(script).output();
    let mut left = host.jobs();
    assert_eq!(left.len(), 1, "{left:?} {output:?}");
    let left = Process::open(left.remove(0).pid).unwrap();
    // Neither does the next job, nor the end of the connection.
    assert_eq!(host.run(["--", "true"]).output().code(), 0);
    assert!(left.is_running());
    left.kill();
}

#[test]
fn fault_37_no_zombie_is_left_of_a_job() {
    let host = Host::start();
    for _ in 0..3 {
        assert_eq!(host.script("(exit 3) & sleep 0 & wait; exit 0").output().code(), 0);
    }
    let supervisor = host.supervisor().unwrap();
    let below = afar_e2e::process::descendants(supervisor.pid());
    assert!(below.is_empty(), "{below:?}");
}

#[test]
fn descriptors_are_given_back() {
    let host = Host::start();
    let mut kept = host.run(["--", "cat"]).stdin_from(Source::Piped).spawn();
    kept.write(b"up\n");
    assert_eq!(kept.line().unwrap(), "up");
    let supervisor = host.supervisor().unwrap();
    let run_some = || {
        for _ in 0..3 {
            assert_eq!(host.run(["--", "true"]).output().code(), 0);
            assert_eq!(host.run(["--", "afar-no-such-program"]).output().code(), 127);
            assert_eq!(host.script("sleep 0 & exit 1").stdin("x").output().code(), 1);
        }
        // The last connection may still be on its way out: one that is in order is a barrier.
        kept_descriptors(&host, &supervisor)
    };
    let before = run_some();
    for _ in 0..3 {
        run_some();
    }
    assert_eq!(run_some(), before);
    assert_eq!(kept.wait().code(), 0);
}

/// The least that is seen within some looks: descriptors of a connection that has just ended are
/// closed a moment after its client has gone.
fn kept_descriptors(host: &Host, supervisor: &Process) -> (usize, usize) {
    let look = || (host.listener().open_descriptors(), supervisor.open_descriptors());
    let mut least = look();
    for _ in 0..10_000 {
        let now = look();
        least = (least.0.min(now.0), least.1.min(now.1));
        std::thread::yield_now();
    }
    least
}

#[test]
fn a_fork_bomb_within_reason_is_ended_with_its_tree() {
    let host = Host::start();
    // Sixty processes in sessions of their own, half of them orphans.
    let script = "i=0; while [ $i -lt 30 ]; do setsid sh -c 'sleep 300 & sleep 300' & \
                  i=$((i+1)); done; echo ready; wait";
    let client = ready(&host, &["--timeout", "1500ms", "--kill-after", "300ms"], script);
    assert_eq!(client.wait().code(), 124);
    host.wait_until_idle();
}
