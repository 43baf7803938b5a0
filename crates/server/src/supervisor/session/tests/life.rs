//! How sessions begin, end, and keep their commands apart.

use std::time::Duration;

use afar_core::policy::{Grant, KeyVariable};
use afar_proto::message::{Command, SessionName, SessionScope};
use afar_proto::outcome::{End, RefusalReason};

use super::rig::{Rig, SHELLS, in_local_set};
use crate::supervisor::Counts;
use crate::supervisor::job::{FromJob, Said};
use crate::supervisor::session::{SessionLimits, prepare_in_session};

#[test]
fn large_scripts_pass_whole() {
    for shell in SHELLS {
        in_local_set(async {
            let rig = Rig::new(shell);
            let text = "x".repeat(300_000);
            let done = rig.run(format!("v='{text}'; echo ${{#v}}")).await;
            assert_eq!(done.out(), "300000\n", "{shell}");
        });
    }
}

#[test]
fn a_command_that_is_ended_takes_the_shell_with_it_and_nothing_older() {
    for shell in SHELLS {
        in_local_set(async {
            let rig = Rig::new(shell);
            let older = rig.run("sleep 300 >/dev/null 2>&1 & echo $!").await;
            let older: i32 = older.out().trim().parse().unwrap();
            let mut spec = rig.spec("echo up; sleep 301; echo next");
            spec.timeout_ms = Some(50);
            let done = rig.run_spec(&spec, b"").await;
            assert_eq!((&done.seal.end, done.out()), (&End::Timeout, "up\n"), "{shell}");
            assert!(done.seal.session_restarted, "{shell}");
            let pid = rustix::process::Pid::from_raw(older).unwrap();
            assert!(rustix::process::test_kill_process(pid).is_ok(), "{shell}: it lives on");
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();

            // Deaf to TERM, the program and the shell.
            let mut running = rig.start(&rig.spec("trap '' TERM; echo up; sleep 302")).unwrap();
            running.until("up").await;
            running.cancel();
            let done = running.done_quietly().await;
            assert_eq!((&done.end, done.session_restarted), (&End::Cancelled, true), "{shell}");
            assert_eq!(rig.run("echo on").await.out(), "on\n", "{shell}");
        });
    }
}

#[test]
fn a_signal_meets_what_the_command_started_or_else_the_shell() {
    for shell in SHELLS {
        in_local_set(async {
            let rig = Rig::new(shell);
            rig.run("cd /usr").await;
            let mut running = rig.start(&rig.spec("sh -c 'echo up; exec sleep 303'")).unwrap();
            running.until("up").await;
            running.say(Said::Signal(afar_sys::signals::Signal::INT));
            let done = running.done_quietly().await;
            assert_eq!((&done.end, done.session_restarted), (&End::Exited { code: 130 }, false));
            assert_eq!(rig.run("pwd").await.out(), "/usr\n", "{shell}");
            let mut running = rig.start(&rig.spec("echo up; while :; do :; done")).unwrap();
            running.until("up").await;
            running.say(Said::Signal(afar_sys::signals::Signal::INT));
            let done = running.done_quietly().await;
            assert!(matches!(done.end, End::Signaled { signal: 2, .. }), "{shell}: {done:?}");
            assert!(done.session_restarted, "{shell}");
        });
    }
}

#[test]
fn commands_wait_for_each_other_up_to_a_limit() {
    in_local_set(async {
        let limits = SessionLimits { queue_max: 2, ..SessionLimits::default() };
        let rig = Rig::with("/bin/sh", limits);
        let mut first = rig.start(&rig.spec("echo up; read x; n=1")).unwrap();
        // It reads the end of its input, but only once this task has waited for something.
        first.until("up").await;
        let busy = rig.spec("sleep 304");
        let blocking = rig.start(&busy).unwrap();
        let second = rig.start(&rig.spec("n=$((n+1)); echo $n")).unwrap();
        let third = rig.start(&rig.spec("echo third"));
        let refused = match third {
            Err(refused) => refused,
            Ok(_) => rig.start(&rig.spec("echo fourth")).map(|_| ()).unwrap_err(),
        };
        assert_eq!(refused.reason, RefusalReason::TooMany);
        assert!(refused.message.contains("2 commands wait in the session s"), "{refused:?}");
        blocking.cancel();
        drop(blocking.done_quietly_or_none().await);
        assert!(second.done().await.is_some());
        assert!(first.done_quietly_or_none().await.is_some());
    });
}

#[test]
fn a_command_that_is_cancelled_while_it_waits_never_runs() {
    in_local_set(async {
        let rig = Rig::new("/bin/sh");
        let mut spec = rig.spec("echo up; read x");
        spec.stdin = true;
        let mut first = rig.start(&spec).unwrap();
        first.until("up").await;
        let second = rig.start(&rig.spec("n=ran")).unwrap();
        second.cancel();
        assert!(second.done().await.is_none());
        first.say(Said::InputEnd);
        assert!(first.done_quietly_or_none().await.is_some());
        assert_eq!(rig.run("echo [$n]").await.out(), "[]\n");
    });
}

#[test]
fn there_are_only_so_many_sessions() {
    in_local_set(async {
        let limits = SessionLimits { sessions_max: 2, ..SessionLimits::default() };
        let rig = Rig::with("/bin/sh", limits);
        let named = |name: &str, script: &str| {
            let mut spec = rig.spec(script);
            spec.session.as_mut().unwrap().name = SessionName::new(name).unwrap();
            spec
        };
        rig.run_spec(&named("a", "true"), b"").await;
        rig.run_spec(&named("b", "true"), b"").await;
        let refused = rig.start(&named("c", "true")).map(|_| ()).unwrap_err();
        assert_eq!(refused.reason, RefusalReason::TooMany);
        assert!(refused.message.contains("2 sessions are open"), "{refused:?}");
        // One that ends makes room.
        assert!(rig.run_spec(&named("a", "exit"), b"").await.seal.session_restarted);
        assert_eq!(rig.supervisor.sessions.count(), 1);
        assert!(rig.start(&named("c", "true")).is_ok());
    });
}

#[test]
fn an_idle_session_ends_and_is_begun_anew() {
    in_local_set(async {
        let idle_max = Duration::from_millis(50);
        let rig = Rig::with("/bin/sh", SessionLimits { idle_max, ..SessionLimits::default() });
        // A command that takes longer than that is not idle.
        let busy = rig.run("n=1; sleep 0.2; echo $n").await;
        assert_eq!(busy.out(), "1\n");
        assert_eq!(rig.run("echo $n").await.out(), "1\n");
        nobody_stays(&rig).await;
        assert_eq!(rig.supervisor.sessions.count(), 0);
        assert_eq!(rig.run("echo [$n]").await.out(), "[]\n");
    });
}

/// Waits until the supervisor has nothing that keeps it.
async fn nobody_stays(rig: &Rig) {
    let mut busy = rig.supervisor.busy.subscribe();
    busy.wait_for(|counts| *counts == Counts::default()).await.unwrap();
}

#[test]
fn a_session_of_a_connection_is_its_own_and_ends_with_it() {
    in_local_set(async {
        let mut rig = Rig::new("/bin/sh");
        let own = |rig: &Rig, script: &str| {
            let mut spec = rig.spec(script);
            spec.session.as_mut().unwrap().scope = SessionScope::Connection;
            spec
        };
        rig.run("n=user").await;
        rig.run_spec(&own(&rig, "n=one; trap 'sleep 0.05' EXIT"), b"").await;
        rig.connection = 2;
        assert_eq!(rig.run_spec(&own(&rig, "echo [$n]"), b"").await.out(), "[]\n");
        rig.connection = 1;
        assert_eq!(rig.run_spec(&own(&rig, "echo [$n]"), b"").await.out(), "[one]\n");
        assert_eq!(rig.run("echo [$n]; exit").await.out(), "[user]\n");
        rig.supervisor.sessions.end_connection(1);
        rig.supervisor.sessions.end_connection(2);
        nobody_stays(&rig).await;
    });
}

#[test]
fn a_key_with_a_command_gets_that_and_no_session() {
    let rig = Rig::new("/bin/sh");
    let mut grant = Grant::local("", rig.supervisor.user.uid);
    grant.restrictions.forced_command = Some("id".into());
    assert!(prepare_in_session(&rig.spec("n=1"), &grant, 1, 0).unwrap().is_none());
}

#[test]
fn a_key_with_variables_has_sessions_of_its_own() {
    in_local_set(async {
        let mut rig = Rig::new("/bin/sh");
        rig.run("n=1").await;
        let variable = KeyVariable { name: "K".into(), value: "key's".into() };
        rig.grant.restrictions.environment = vec![variable];
        assert_eq!(rig.run("echo [$n] $K").await.out(), "[] key's\n");
    });
}

#[test]
fn fault_46_47_what_a_shell_can_not_be_given_is_refused() {
    let rig = Rig::new("/bin/sh");
    let mut with_cwd = rig.spec("true");
    with_cwd.cwd = Some("/".into());
    let mut limited = rig.spec("true");
    limited.pids_max = Some(7);
    let mut bad_name = rig.spec("true");
    bad_name.env = vec![("a-b".into(), "x".into())];
    let mut nul_value = rig.spec("true");
    nul_value.env = vec![("A".into(), vec![0].into())];
    let mut empty = rig.spec("");
    empty.command = Command::Argv(Vec::new());
    for spec in [with_cwd, limited, bad_name, nul_value, empty, rig.spec(b"a\0b")] {
        let refused = prepare_in_session(&spec, &rig.grant, 1, 0).unwrap_err();
        assert_eq!(refused.reason, RefusalReason::Invalid, "{spec:?}");
    }
}

#[test]
fn another_shell_is_stood_in_for_and_that_is_told_once() {
    in_local_set(async {
        let rig = Rig::new("/usr/bin/fish");
        let first = rig.run("n=1").await;
        assert!(first.note.unwrap().contains("fish can't hold a session, /bin/sh"));
        assert_eq!(rig.run("echo $n").await.note, None);
        let rig = Rig::new("/usr/sbin/nologin");
        let mut refused = rig.start(&rig.spec("true")).unwrap();
        let Some((_, FromJob::Refused(refused))) = refused.events.recv().await else {
            panic!("a shell that lets nobody in is not stood in for")
        };
        assert_eq!(refused.reason, RefusalReason::Unsupported);
        assert!(refused.message.contains("/usr/sbin/nologin"));
    });
}

#[test]
fn fault_33_34_what_holds_the_output_open_delays_the_next_command_not() {
    in_local_set(async {
        let rig = Rig::new("/bin/sh");
        let done = rig.run("sleep 305 & echo $!").await;
        assert!(done.seal.streams_left_open && done.code() == Some(0));
        let pid = done.out().trim().parse().unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        assert_eq!(rig.run("echo on").await.out(), "on\n");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    });
}
