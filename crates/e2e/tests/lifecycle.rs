//! Whoever is killed, the others tell the truth and clean up.

use std::collections::BTreeSet;
use std::time::Duration;

use afar_e2e::process::{descendants, entry};
use afar_e2e::{Host, Process, Running, Source};
use rustix::process::Signal;
use serde_json::json;

/// A job that has said `ready`, with `--result`.
#[track_caller]
fn ready(host: &Host, script: &str) -> Running {
    let result = host.file("result");
    let result = result.to_str().expect("the rig's paths are UTF-8");
    let run = host.run(["--result", result, "--kill-after", "500ms", "-c", script]);
    let mut client = run.stdin_from(Source::Piped).spawn();
    assert_eq!(client.line().as_deref(), Some("ready"));
    client
}

/// A child, one in a session of its own, one that ignores TERM, and the shell.
const TREE: &str =
    "sleep 301 & setsid sleep 302 & (trap '' TERM; exec sleep 303) & echo ready; wait";

#[test]
fn fault_51_a_killed_client_leaves_its_job_with_all_of_its_tree() {
    let host = Host::start();
    let client = ready(&host, TREE);
    let before = host.jobs().len();
    assert!(before >= 4, "{:?}", host.jobs());
    client.process().kill();
    assert_eq!(client.wait().signal(), Some(9));
    assert_eq!(host.run(["--", "echo", "on"]).output().success().text(), "on\n");
    assert_eq!(host.end_jobs(), before);
}

#[test]
fn fault_42_a_job_whose_client_was_killed_in_the_middle_of_bulk_output_waits_in_its_write() {
    let host = Host::start();
    for script in ["yes", "while :; do echo x; done", "cat /dev/zero & cat /dev/zero >&2"] {
        let mut client = host.script(script).spawn();
        assert_eq!(client.read(1_000_000).len(), 1_000_000);
        client.process().kill();
        assert!(host.end_jobs() > 0);
    }
}

#[test]
fn a_client_that_is_killed_takes_no_other_clients_job_with_it() {
    let host = Host::start();
    let mut other = host.run(["--", "cat"]).stdin_from(Source::Piped).spawn();
    other.write(b"one\n");
    assert_eq!(other.line().unwrap(), "one");
    let client = ready(&host, TREE);
    client.process().kill();
    other.write(b"two\n");
    assert_eq!(other.line().unwrap(), "two");
    assert_eq!(other.wait().code(), 0);
    assert!(host.end_jobs() >= 4);
}

#[test]
fn a_killed_listener_is_noticed_by_nobody_who_is_in() {
    let mut host = Host::start();
    let mut client = ready(&host, "echo ready; exec cat");
    let supervisor = host.supervisor().unwrap();
    host.listener().kill();
    let line = "x".repeat(100_000);
    client.write(format!("{line}\n").as_bytes());
    assert!(client.line().unwrap() == line);
    client.close_stdin();
    assert_eq!(client.wait().code(), 0);
    assert_eq!(host.json("result")["end"], json!({"kind": "exited", "code": 0}));
    assert!(supervisor.is_running());
    // Nobody listens, and that is what is said.
    let output = host.run(["--", "true"]).output();
    assert!(output.expect_code(255).error_text().contains("was not started"), "{output:?}");
    // A new listener finds the supervisor that is there.
    host.restart_listener();
    assert_eq!(host.run(["--", "echo", "on"]).output().success().text(), "on\n");
    assert_eq!(host.supervisor().unwrap().pid(), supervisor.pid());
    host.wait_until_idle();
}

#[test]
fn a_listener_that_is_told_to_end_does_and_leaves_those_who_are_in() {
    for signal in [Signal::TERM, Signal::INT] {
        let host = Host::start();
        assert_eq!(host.run(["--", "true"]).output().code(), 0);
        let mut client = ready(&host, "echo ready; exec cat");
        host.listener().signal(signal);
        host.listener().wait();
        client.write(b"still\n");
        assert_eq!(client.line().unwrap(), "still");
        client.close_stdin();
        assert_eq!(client.wait().code(), 0);
        host.wait_until_idle();
    }
}

#[test]
fn fault_50_a_killed_supervisor_is_no_made_up_status() {
    let host = Host::start();
    // It ends by itself when its supervisor, which holds its stdin, is gone.
    let client = ready(&host, "echo ready; exec cat");
    let before = host.supervisor().unwrap();
    before.kill();
    let output = client.wait();
    let said = output.expect_code(255).error_text();
    assert!(said.contains("was started"), "{said}");
    let outcome = host.json("result");
    let kind = outcome["end"]["kind"].as_str().unwrap();
    assert!(matches!(kind, "lost" | "unknown"), "{outcome}");
    assert_eq!(outcome["started"], "yes");
    assert_ne!(outcome["phase"], "done");
    host.wait_until_idle();
    // The next command starts another one; the socket that was left behind is in nobody's way.
    assert_eq!(host.run(["--", "echo", "on"]).output().success().text(), "on\n");
    assert_ne!(host.supervisor().unwrap().pid(), before.pid());
}

#[test]
fn a_supervisor_that_dies_while_many_commands_run_ends_none_of_them_well() {
    let host = Host::start();
    let clients: Vec<Running> = (0..4).map(|_| ready(&host, "echo ready; exec cat")).collect();
    host.supervisor().unwrap().kill();
    for client in clients {
        assert_eq!(client.wait().code(), 255);
    }
    host.wait_until_idle();
}

#[test]
fn many_first_commands_at_once_start_one_supervisor() {
    // The one that loses the race for the lock must wait for the winner to listen, not give up.
    for _ in 0..5 {
        let host = Host::start();
        assert!(host.supervisor().is_none());
        let runs: Vec<_> = (0..8).map(|_| host.script("echo $PPID").spawn()).collect();
        let parents: BTreeSet<String> =
            runs.into_iter().map(|run| run.wait().success().text().trim().to_owned()).collect();
        let supervisor = host.supervisor().unwrap();
        assert_eq!(parents, BTreeSet::from([supervisor.pid().to_string()]), "{}", host.log());
        let below = descendants(std::process::id());
        let count = below.iter().filter(|entry| {
            entry.command.ends_with("afar supervisor")
                && entry.state != 'Z'
                && environment_has(entry.pid, host.file("run").to_str().unwrap())
        });
        let guardian = entry(supervisor.pid()).unwrap().parent;
        let expected = BTreeSet::from([guardian, supervisor.pid()]);
        assert_eq!(count.map(|entry| entry.pid).collect::<BTreeSet<_>>(), expected);
    }
}

fn environment_has(pid: u32, text: &str) -> bool {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    String::from_utf8_lossy(&environment).contains(text)
}

#[test]
fn local_runs_here_and_shares_the_supervisor_with_the_listener() {
    let host = Host::start();
    // The supervisor is started on demand, by this command, and outlives it.
    assert!(host.supervisor().is_none());
    let output = host.run_at("local", ["--", "printf", "%s|", "a b", ""]).output();
    assert_eq!(output.success().text(), "a b||");
    let supervisor = host.supervisor().unwrap();
    let output = host.run_at("local", ["-c", "cat; echo err >&2; exit 7"]).stdin("in").output();
    assert_eq!((output.expect_code(7).text(), output.error_text()), ("in", "err\n"));
    assert_eq!(host.run(["--", "true"]).output().code(), 0);
    assert_eq!(host.supervisor().unwrap().pid(), supervisor.pid());
    let result = host.file("result");
    let words = ["--result", result.to_str().unwrap(), "--", "sh", "-c", "kill -KILL $$"];
    assert_eq!(host.run_at("local", words).output().code(), 137);
    assert_eq!(host.json("result")["target"], "local");
    assert_eq!(host.json("result")["end"]["kind"], "signaled");
}

#[test]
fn a_local_client_that_is_killed_leaves_its_job() {
    let host = Host::start();
    // The supervisor hangs below the listener, so that what it leaves behind is found.
    assert_eq!(host.run(["--", "true"]).output().code(), 0);
    let mut client = host.run_at("local", ["-c", TREE]).spawn();
    assert_eq!(client.line().as_deref(), Some("ready"));
    client.process().kill();
    assert!(host.end_jobs() >= 4);
}

#[test]
fn a_command_within_a_job_can_use_afar_itself() {
    let host = Host::start();
    // A job's environment names another runtime directory than the test's, so it is passed on.
    let variables: Vec<String> = host
        .environment()
        .into_iter()
        .filter(|(name, _)| name.to_string_lossy().starts_with("XDG") || name == "HOME")
        .map(|(name, value)| format!("{}={}", name.to_string_lossy(), value.to_string_lossy()))
        .collect();
    let afar = afar_e2e::afar().to_str().unwrap();
    let words: Vec<&str> = ["--", "env"]
        .into_iter()
        .chain(variables.iter().map(String::as_str))
        .chain([afar, "run", "local", "--", "sh", "-c", "echo inner; exit 5"])
        .collect();
    let output = host.run(words).output();
    assert_eq!(output.expect_code(5).text(), "inner\n");
}

#[test]
fn a_client_that_goes_away_before_its_command_starts_leaves_a_whole_job_or_none() {
    let host = Host::start();
    // Somewhere between the connection and the first byte of output, a bit later each time.
    for step in 0..12 {
        let client = host.script("sleep 300 & setsid sleep 300 & wait").spawn();
        let ended = client.process();
        let deadline = afar_e2e::Deadline::after(Duration::from_millis(5 * step));
        assert!(!ended.wait_until(deadline), "a command that sleeps does not end");
        ended.kill();
    }
    // Nothing but whole trees: what is ended with the jobs' own processes leaves nothing behind.
    host.end_jobs();
}

#[test]
fn the_supervisor_stays_when_its_last_client_goes() {
    let host = Host::start();
    assert_eq!(host.run(["--", "true"]).output().code(), 0);
    let supervisor: Process = host.supervisor().unwrap();
    for _ in 0..3 {
        assert_eq!(host.run(["--", "true"]).output().code(), 0);
    }
    assert_eq!(host.supervisor().unwrap().pid(), supervisor.pid());
    assert!(supervisor.is_running());
}
