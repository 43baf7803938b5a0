//! Sessions: a shell that lasts from one run to the next. What commands may do to it is tested
//! shell by shell beside the drivers (`crates/server/src/supervisor/session/tests`).
#![cfg(test)]

use afar_e2e::{Host, Run, Sink};
use rustix::process::Signal;
use serde_json::{Value, json};

/// A script in the session `s`.
fn session(host: &Host, script: &str) -> Run {
    host.run(["--session", "s", "-c", script])
}

/// The same, and its outcome.
fn outcome(host: &Host, script: &str) -> Value {
    let run = host.run(["-q", "--session", "s", "--result", "-", "-c", script]);
    serde_json::from_slice(&run.output().stdout).unwrap()
}

#[test]
fn what_one_run_sets_the_next_one_finds() {
    let host = Host::start();
    host.run(["--session", "s", "--", "cd", "/usr"]).output().success();
    session(&host, "export V='a b'; f() { echo \"f $1\" >&2; return 3; }").output().success();
    let output = session(&host, "pwd; echo \"$V\"; f x").output();
    assert_eq!(output.expect_code(3).text(), "/usr\na b\n");
    assert_eq!(output.error_text(), "f x\n");
    assert_eq!(session(&host, "echo $?").output().success().text(), "3\n");
    // Another session, and a run without one, know nothing of it.
    let other = host.run(["--session", "other", "-c", "echo [$V]"]).output();
    assert_eq!(other.success().text(), "[]\n");
    assert_eq!(host.script("echo [$V]").output().success().text(), "[]\n");
    // The same user's own supervisor has it, too.
    let local = host.run_at("local", ["--session", "s", "-c", "echo \"$V\""]).output();
    assert_eq!(local.success().text(), "a b\n");
}

#[test]
fn a_session_outlives_the_listener() {
    let mut host = Host::start();
    session(&host, "v=1").output().success();
    host.listener().kill();
    host.restart_listener();
    assert_eq!(session(&host, "echo $v").output().success().text(), "1\n");
}

#[test]
fn the_outcome_says_when_the_shell_has_ended() {
    let host = Host::start();
    session(&host, "v=1").output().success();
    let went_on = outcome(&host, "true");
    assert_eq!(went_on.get("session_restarted"), None);
    assert_eq!(went_on["max_rss_bytes"], Value::Null);
    let ended = outcome(&host, "exit 3");
    assert_eq!(ended["end"], json!({"kind": "exited", "code": 3}));
    assert_eq!(ended["session_restarted"], true);
    assert_eq!(session(&host, "echo [$v]").output().success().text(), "[]\n");
    let killed = outcome(&host, "kill -KILL $$");
    assert_eq!(killed["end"]["name"], "SIGKILL");
    assert_eq!(killed["session_restarted"], true);
    let output = host.run(["--session", "s", "--timeout", "100ms", "--", "sleep", "300"]).output();
    output.expect_code(124);
    assert_eq!(outcome(&host, "true").get("session_restarted"), None);
}

#[test]
fn fault_43_output_is_whole_and_stdin_the_commands_own() {
    let host = Host::start();
    let run = session(&host, "head -c 100000000 /dev/zero").stdout_to(Sink::Digest);
    let output = run.output();
    assert_eq!(output.success().digest.as_ref().unwrap().bytes, 100_000_000);
    let lines = "first\nsecond\n".repeat(10_000);
    let output = session(&host, "read x; echo \"[$x]\"; wc -c").stdin(lines.clone()).output();
    assert_eq!(output.success().text(), format!("[first]\n{}\n", lines.len() - 6));
    let output = host.run(["--session", "s", "--merge", "-c", "echo a; echo b >&2; echo c"]);
    assert_eq!(output.output().success().text(), "a\nb\nc\n");
}

#[test]
fn a_client_that_goes_away_leaves_its_command_to_the_session_and_that_to_the_next() {
    let host = Host::start();
    let fifo = host.fifo("fifo");
    let busy = format!("v=1; echo up; read x < {}", fifo.word());
    let mut busy = session(&host, &busy).spawn();
    assert_eq!(busy.line().as_deref(), Some("up"));
    // This one waits for its turn.
    let waiting = session(&host, "echo [$v]").spawn();
    busy.signal(Signal::KILL);
    assert_eq!(busy.wait().signal(), Some(9));
    // The command that nobody watches runs to its end, and what it has set stays.
    fifo.release();
    let output = waiting.wait();
    assert_eq!(output.success().text(), "[1]\n");
}

#[test]
fn an_interrupt_ends_the_program_and_not_the_session() {
    let host = Host::start();
    session(&host, "v=1").output().success();
    let mut running = session(&host, "sh -c 'echo up; exec sleep 300'").spawn();
    assert_eq!(running.line().as_deref(), Some("up"));
    running.signal(Signal::INT);
    running.wait().expect_code(130);
    assert_eq!(session(&host, "echo $v").output().success().text(), "1\n");
}

#[test]
fn fault_84_a_key_with_a_command_has_no_session() {
    let host = Host::builder().key_options("command=\"echo forced $SSH_ORIGINAL_COMMAND\"").start();
    for _ in 0..2 {
        let output = session(&host, "v=1").output();
        assert_eq!(output.success().text(), "forced v=1\n");
    }
    // The session of the user's own is another thing.
    let local = host.run_at("local", ["--session", "s", "-c", "echo [$v]"]).output();
    assert_eq!(local.success().text(), "[]\n");
}

#[test]
fn a_variable_that_is_read_only_there_refuses_the_command_and_is_named() {
    // W-5.9
    let host = Host::start();
    session(&host, "cd /usr; set -e; readonly X=1").output().success();
    let run = host.run(["--session", "s", "--result", "-", "-e", "X=2", "-c", "echo ran"]);
    let output = run.output();
    let said = output.expect_code(255).error_text();
    assert!(said.contains("the variable X can't be set in the session s"), "{said}");
    let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&outcome["started"], &outcome["phase"]), (&json!("no"), &json!("spawn")));
    assert_eq!(session(&host, "pwd").output().success().text(), "/usr\n");
}

#[test]
fn what_makes_no_sense_is_a_usage_error() {
    let host = Host::start();
    for words in [["--session", "a/b"], ["--session", ""]] {
        let output = host.run(words.iter().chain(&["--", "true"])).output();
        assert!(output.expect_code(255).error_text().contains("1 to 64 characters"), "{output:?}");
    }
    let output = host.run(["--session", "s", "--cwd", "/", "--", "true"]).output();
    assert!(output.expect_code(255).error_text().contains("--cwd"), "{output:?}");
    let output = host.run(["--session", "s", "-e", "a-b=c", "--", "true"]).output();
    assert!(output.expect_code(255).error_text().contains("no name of a variable"), "{output:?}");
}
