//! Variables of a request, and what comes of those that the user has made read-only.

use std::time::Duration;

use afar_core::job::Told;
use afar_proto::message::Refused;
use afar_proto::outcome::{End, Phase, RefusalReason, Started};
use afar_sys::readiness::watch;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::rig::{Rig, SHELLS, in_local_set};
use crate::supervisor::job::FromJob;
use crate::supervisor::session::SessionLimits;

/// What a user may have set up in the shell when a read-only variable is met.
const HABITS: [&str; 5] = [
    "true",
    "set -eu",
    "command() { echo mine; }; printf() { echo mine; }",
    "set -e; set -C; set -x; IFS=@_",
    "set -e; if test \"$BASH_VERSION\"; then set -o posix; trap 'echo trapped' ERR DEBUG; fi",
];

/// Runs a test for every shell, each time in one that was prepared with one of the habits.
fn for_each_habit(test: impl AsyncFn(&Rig, &str) + Copy) {
    for shell in SHELLS {
        for habit in HABITS {
            in_local_set(async {
                let rig = Rig::new(shell);
                assert_eq!(rig.run(habit).await.code(), Some(0), "{shell} {habit}");
                test(&rig, &format!("{shell} {habit}")).await;
            });
        }
    }
}

/// The refusal of a script with these variables.
async fn refused(rig: &Rig, script: &str, variables: &[(&str, &str)]) -> Refused {
    let mut spec = rig.spec(script);
    spec.env = variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    let mut running = rig.start(&spec).unwrap();
    let Some((_, FromJob::Refused(refused))) = running.events.recv().await else {
        panic!("{variables:?} can't all be set")
    };
    *refused
}

#[test]
fn variables_of_the_request_are_set_in_the_shell() {
    for_each_habit(async |rig, what| {
        let mut spec = rig.spec("echo \"$A\"; env | grep '^[AB]=' | sort");
        spec.env = vec![("A".into(), "it's".into()), ("B".into(), "\n".into())];
        let done = rig.run_spec(&spec, b"").await;
        let out = done.out().replace("trapped\n", "");
        assert_eq!(out, "it's\nA=it's\nB=\n", "{what}");
        let again = rig.run("echo \"$A\"").await;
        assert_eq!(again.out().replace("trapped\n", ""), "it's\n", "{what}");
    });
}

#[test]
fn a_read_only_variable_refuses_the_command_and_the_shell_lives_on() {
    for_each_habit(async |rig, what| {
        rig.run("cd /usr; readonly X=1").await;
        let refused = refused(rig, "cd /", &[("Y", "5"), ("X", "2"), ("Z", "6")]).await;
        assert_eq!(
            (refused.phase, refused.reason, refused.started),
            (Phase::Spawn, RefusalReason::Invalid, Started::No),
            "{what}"
        );
        assert!(refused.message.contains("the variable X can't be set in the session s"), "{what}");
        // Nothing of the request has been done.
        let next = rig.run("pwd; echo $X ${Y-no} ${Z-no}").await;
        assert_eq!(next.out().replace("trapped\n", ""), "/usr\n1 no no\n", "{what}");
        assert!(!next.seal.session_restarted, "{what}");
    });
}

#[test]
fn a_shell_that_ends_or_hangs_over_a_variable_is_exchanged() {
    in_local_set(async {
        let slow = Duration::from_millis(300);
        let limits = SessionLimits { trial_max: slow, ..SessionLimits::default() };
        let rig = Rig::with("/bin/bash", limits);
        rig.run("cd /usr; set -T; trap 'test $BASH_SUBSHELL = 0 || kill -KILL $$ $BASHPID' DEBUG")
            .await;
        let refusal = refused(&rig, "true", &[("X", "2")]).await;
        assert_eq!((refusal.phase, refusal.started), (Phase::Spawn, Started::No));
        let next = rig.run("pwd").await;
        assert_eq!((next.out(), next.seal.session_restarted), ("/tmp\n", true));

        rig.run("set -T; trap 'test $BASH_SUBSHELL = 0 || { kill -STOP $$; kill -KILL $BASHPID; }' DEBUG").await;
        let refusal = refused(&rig, "true", &[("X", "2")]).await;
        assert!(refusal.message.contains("timed out"), "{}", refusal.message);
        assert!(rig.run("true").await.seal.session_restarted);

        // One that takes its time is waited for, within the limit, but not for who waits no longer.
        let rig = Rig::new("/bin/bash");
        rig.run("set -T; trap 'test $BASH_SUBSHELL = 0 || sleep 0.2' DEBUG").await;
        let mut spec = rig.spec("trap DEBUG; echo $X");
        spec.env = vec![("X".into(), "2".into())];
        assert_eq!(rig.run_spec(&spec, b"").await.out(), "2\n");
        rig.run("set -T; trap 'test $BASH_SUBSHELL = 0 || { kill -STOP $$; kill -KILL $BASHPID; }' DEBUG").await;
        let mut spec = rig.spec("true");
        spec.env = vec![("X".into(), "2".into())];
        let running = rig.start(&spec).unwrap();
        tokio::task::yield_now().await;
        running.cancel();
        assert!(running.done().await.is_none());
        assert!(rig.run("true").await.seal.session_restarted);
    });
}

#[test]
fn fault_35_a_read_only_mark_saves_no_process_from_its_commands_end() {
    for_each_habit(async |rig, what| {
        let older =
            rig.run("readonly AFAR_JOB_MARK AFAR_JOB_ID; sleep 300 >/dev/null 2>&1 & echo $!");
        let older = pid_in(older.await.out());
        // Deaf to TERM, and soon without its parent.
        let mut spec = rig.spec("sh -c 'trap \"\" TERM; echo $$; while :; do sleep 1; done'; true");
        spec.kill_after_ms = Some(50);
        spec.timeout_ms = Some(200);
        let mut running = rig.start(&spec).unwrap();
        // A shell may say other things before it.
        let mut said = String::new();
        let pid = loop {
            match running.next().await.unwrap() {
                FromJob::Told(Told::Data { bytes, .. }) => {
                    said += std::str::from_utf8(&bytes).unwrap();
                }
                FromJob::Told(Told::Seal(seal)) => panic!("{what}: {seal:?}"),
                _ => {}
            }
            let is_number = |line: &&str| line.starts_with(|c: char| c.is_ascii_digit());
            let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
            if let Some(line) = whole.lines().find(is_number) {
                break pid_in(line);
            }
        };
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        assert_eq!(running.done_quietly().await.end, End::Timeout, "{what}");
        let ended = watch(pidfd, tokio::io::Interest::READABLE).unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(10), ended.readable()).await;
        assert!(ended.is_ok(), "{what}: {pid:?} lives on");
        // What an earlier command has left running is not this one's.
        rustix::process::kill_process(older, rustix::process::Signal::KILL).unwrap();
        assert!(!rig.run("true").await.seal.session_restarted, "{what}");
    });
}

/// The pid in a command's output.
fn pid_in(output: &str) -> Pid {
    Pid::from_raw(output.trim().trim_start_matches("trapped\n").parse().unwrap()).unwrap()
}
