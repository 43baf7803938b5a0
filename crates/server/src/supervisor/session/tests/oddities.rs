//! What commands do to their shell, and what comes of it, for every driver.

use afar_proto::message::Command;
use afar_proto::outcome::End;

use super::rig::{Rig, SHELLS, in_local_set};

/// Runs a test for every shell.
fn for_each_shell(test: impl AsyncFn(&Rig, &str) + Copy) {
    for shell in SHELLS {
        in_local_set(async { test(&Rig::new(shell), shell).await });
    }
}

#[test]
fn what_commands_set_is_there_for_the_next() {
    for_each_shell(async |rig, shell| {
        let set = "cd /usr; v=5; f() { echo \"f $1\"; }; export E=x; set -- a b c";
        assert_eq!(rig.run(set).await.code(), Some(0), "{shell}");
        let seen = rig.run("pwd; echo $v; f 2; env | grep ^E=; echo $#").await;
        assert_eq!((seen.out(), seen.err()), ("/usr\n5\nf 2\nE=x\n3\n", ""), "{shell}");
        assert!(!seen.seal.session_restarted);
    });
}

#[test]
fn streams_and_statuses_are_each_commands_own() {
    for_each_shell(async |rig, shell| {
        let done = rig.run("echo out; echo err >&2; (exit 7)").await;
        assert_eq!((done.out(), done.err(), done.code()), ("out\n", "err\n", Some(7)), "{shell}");
        for status in [7, 0, 255, 1] {
            let done = rig.run(format!("echo $?; (exit {status})")).await;
            let expected = match status {
                7 => "7\n",
                0 => "7\n",
                255 => "0\n",
                _ => "255\n",
            };
            assert_eq!((done.out(), done.code()), (expected, Some(status)), "{shell}");
        }
        let done = rig.run("printf 'no newline'").await;
        assert_eq!(done.out(), "no newline", "{shell}");
    });
}

#[test]
fn an_error_of_syntax_is_one_and_the_session_goes_on() {
    for_each_shell(async |rig, shell| {
        rig.run("cd /usr").await;
        for text in [
            "echo \"unfinished",
            "echo 'unfinished",
            "echo `unfinished",
            "echo $((1+",
            "if true; then",
            "{",
            "}",
            "(",
            ")",
            "echo fine; )",
            "case x in",
            "for",
            "echo $(",
            "\\builtin ; } always",
        ] {
            let done = rig.run(text).await;
            assert!(matches!(done.code(), Some(1 | 2)), "{shell}: {text}: {done:?}");
            assert_eq!(done.out(), "", "{shell}: {text}");
            assert!(!done.err().is_empty() && !done.seal.session_restarted, "{shell}: {text}");
        }
        assert_eq!(rig.run("pwd").await.out(), "/usr\n", "{shell}");
    });
}

#[test]
fn here_documents_and_lines() {
    for_each_shell(async |rig, shell| {
        let done = rig.run("cat <<EOF\na 'b\n$((1+1))\nEOF\necho after").await;
        assert_eq!(done.out(), "a 'b\n2\nafter\n", "{shell}");
        // The end of the text ends it, too.
        let done = rig.run("cat <<EOF\nopen").await;
        assert_eq!(done.out().trim_end(), "open", "{shell}");
        let done = rig.run("echo a\\\n b\n\n# a comment\necho c # 'd").await;
        assert_eq!(done.out(), "a b\nc\n", "{shell}");
    });
}

#[test]
fn every_byte_arrives_as_it_is() {
    for_each_shell(async |rig, shell| {
        // Not the NUL, which no argument can hold.
        let bytes: Vec<u8> = (1..=255).collect();
        let quoted = bytes.iter().flat_map(|byte| match byte {
            b'\'' => b"'\\''".to_vec(),
            byte => vec![*byte],
        });
        let script = [b"printf %s '".to_vec(), quoted.collect(), b"'".to_vec()].concat();
        assert_eq!(rig.run(script).await.stdout, bytes, "{shell}");
        let words = [b"printf".to_vec(), b"%s|".to_vec(), bytes.clone(), Vec::new()];
        let mut spec = rig.spec("");
        spec.command = Command::Argv(words.map(Into::into).into());
        let expected = [&bytes[..], b"||"].concat();
        assert_eq!(rig.run_spec(&spec, b"").await.stdout, expected, "{shell}");
    });
}

#[test]
fn an_argv_finds_the_shells_own_commands_and_is_not_expanded() {
    for_each_shell(async |rig, shell| {
        let mut spec = rig.spec("");
        spec.command = Command::Argv(vec!["cd".into(), "/usr".into()]);
        assert_eq!(rig.run_spec(&spec, b"").await.code(), Some(0), "{shell}");
        let mut spec = rig.spec("");
        let words = ["echo", "$HOME", "*", "a  b", "~", "`x`", "A=b"];
        spec.command = Command::Argv(words.map(Into::into).into());
        let expected = "$HOME * a  b ~ `x` A=b\n";
        assert_eq!(rig.run_spec(&spec, b"").await.out(), expected, "{shell}");
        assert_eq!(rig.run("pwd").await.out(), "/usr\n", "{shell}");
    });
}

#[test]
fn the_end_of_the_shell_is_the_commands_and_told_once() {
    for_each_shell(async |rig, shell| {
        rig.run("cd /usr").await;
        let done = rig.run("exit 3").await;
        assert_eq!((done.code(), done.seal.session_restarted), (Some(3), true), "{shell}");
        let next = rig.run("pwd; echo $?").await;
        assert_eq!((next.out(), next.seal.session_restarted), ("/tmp\n0\n", false), "{shell}");
        let done = rig.run("kill $$; sleep 5").await;
        let term = End::Signaled { signal: 15, name: "SIGTERM".into(), core: false };
        assert_eq!((&done.seal.end, done.seal.session_restarted), (&term, true), "{shell}");
        let done = rig.run("echo said; exec sh -c 'echo another; exit 4'").await;
        assert_eq!((done.out(), done.code()), ("said\nanother\n", Some(4)), "{shell}");
        assert!(done.seal.session_restarted, "{shell}");
    });
}

#[test]
fn a_shell_that_ends_between_commands_is_told_by_the_next() {
    for_each_shell(async |rig, shell| {
        let pid = rig.run("cd /usr").await.pid;
        let (pidfd, pid) = pidfd_of(pid);
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        until_ended(pidfd).await;
        let next = rig.run("pwd").await;
        assert_eq!((next.out(), next.seal.session_restarted), ("/tmp\n", true), "{shell}");
        assert!(!rig.run("true").await.seal.session_restarted, "{shell}");
    });
}

fn pidfd_of(pid: u32) -> (std::os::fd::OwnedFd, rustix::process::Pid) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    (rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap(), pid)
}

async fn until_ended(pidfd: std::os::fd::OwnedFd) {
    let watched = afar_sys::readiness::watch(pidfd, tokio::io::Interest::READABLE).unwrap();
    drop(watched.readable().await.unwrap());
}

#[test]
fn options_last_and_do_not_disturb() {
    for_each_shell(async |rig, shell| {
        assert_eq!(rig.run("set -eu; set -f; set -C; set -a; v=1").await.code(), Some(0));
        let done = rig.run("case $- in *e*u*|*u*e*) echo both;; esac; ! true; echo $?").await;
        assert_eq!((done.out(), done.code()), ("both\n1\n", Some(0)), "{shell}");
        // Nothing of ours is exported by `set -a`.
        assert_eq!(rig.run("env | grep -c __afar || true").await.out(), "0\n", "{shell}");
        let done = rig.run("false; echo not reached").await;
        assert_eq!((done.out(), done.code()), ("", Some(1)), "{shell}");
        assert!(done.seal.session_restarted, "{shell}: set -e ends the shell, as at a prompt");
    });
}

#[test]
fn a_trace_shows_the_command_and_nothing_of_ours() {
    for_each_shell(async |rig, shell| {
        rig.run("set -x").await;
        for text in ["echo traced", "echo again; (exit 3)"] {
            let done = rig.run(text).await;
            assert!(done.err().contains("echo "), "{shell}: {:?}", done.err());
            assert!(!done.err().contains("afar"), "{shell}: {:?}", done.err());
            assert!(!done.err().contains("eval '"), "{shell}: {:?}", done.err());
        }
        assert_eq!(rig.run("echo $?").await.out(), "3\n", "{shell}");
        rig.run("set +x").await;
        assert_eq!(rig.run("echo quiet").await.err(), "", "{shell}");
    });
}

#[test]
fn an_unset_variable_is_an_error_and_no_hang() {
    for_each_shell(async |rig, shell| {
        rig.run("cd /usr; set -u").await;
        let done = rig.run("echo $nope; echo not reached").await;
        assert_eq!(done.out(), "", "{shell}");
        assert!(matches!(done.code(), Some(1 | 2 | 127)), "{shell}: {done:?}");
        assert!(done.err().contains("nope"), "{shell}");
        // bash ends a script there; the others go on.
        assert_eq!(done.seal.session_restarted, shell == "/bin/bash", "{shell}");
    });
}

#[test]
fn functions_named_as_what_the_driver_uses_change_nothing() {
    for_each_shell(async |rig, shell| {
        // dash takes no function of the name of a special built-in.
        let special = if shell == "/bin/dash" {
            ""
        } else {
            "eval() { echo my eval; }; exit() { echo my exit; }; export() { echo my export; }; \
             trap() { echo my trap; }; set() { echo my set; };"
        };
        let names = "command() { echo my command; }; printf() { echo my printf; }; \
                     echo2() { :; }; test() { return 1; }; type() { :; }; read() { :; }";
        assert_eq!(rig.run(format!("{special} {names}")).await.code(), Some(0), "{shell}");
        for _ in 0..2 {
            let done = rig.run("command x; printf y; cd /usr; sh -c 'exit 9'").await;
            let seen = (done.out(), done.err(), done.code());
            assert_eq!(seen, ("my command\nmy printf\n", "", Some(9)), "{shell}");
            let done = rig.run("echo $?").await;
            assert_eq!(done.out(), "9\n", "{shell}");
        }
        let done = rig.run("echo 'unfinished").await;
        assert!(matches!(done.code(), Some(1 | 2)) && !done.err().is_empty(), "{shell}: {done:?}");
        assert!(!done.seal.session_restarted, "{shell}");
        if !special.is_empty() {
            assert_eq!(rig.run("eval x; exit 1; echo $?").await.out(), "my eval\nmy exit\n0\n");
        }
        assert_eq!(rig.run("pwd").await.out(), "/usr\n", "{shell}");
    });
}

#[test]
fn a_function_named_builtin_or_unset_does_not_stop_the_driver() {
    for_each_shell(async |rig, shell| {
        for name in ["builtin", "unset"] {
            if shell == "/bin/dash" && name == "unset" {
                continue;
            }
            let defined = rig.run(format!("{name}() {{ echo mine; }}")).await;
            assert_eq!(defined.code(), Some(0), "{shell} {name}");
            assert_eq!(rig.run("echo on").await.out(), "on\n", "{shell} {name}");
        }
    });
}

#[test]
fn aliases_and_ifs_change_nothing() {
    for_each_shell(async |rig, shell| {
        let aliases = "alias eval=nonsense command=nonsense builtin=nonsense printf=nonsense \
                       unset=nonsense times=nonsense export=nonsense; IFS=0123456789@_ae";
        assert_eq!(rig.run(aliases).await.code(), Some(0), "{shell}");
        let done = rig.run("echo on; (exit 23)").await;
        assert_eq!((done.out(), done.code()), ("on\n", Some(23)), "{shell}");
        assert_eq!(rig.run("echo \"$?\"").await.out(), "23\n", "{shell}");
    });
}

#[test]
fn a_lasting_redirection_lasts_for_its_command() {
    for_each_shell(async |rig, shell| {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("f");
        let path = file.display();
        let done = rig.run(format!("exec >{path}; echo within")).await;
        assert_eq!((done.out(), done.code()), ("", Some(0)), "{shell}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "within\n", "{shell}");
        assert_eq!(rig.run("echo without").await.out(), "without\n", "{shell}");
        // Other descriptors last.
        assert_eq!(rig.run(format!("exec 5>>{path}; echo more >&5")).await.code(), Some(0));
        assert_eq!(rig.run("echo most >&5; exec 5>&-").await.code(), Some(0), "{shell}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "within\nmore\nmost\n", "{shell}");
        assert_eq!(rig.run("exec <&- >&- 2>&-").await.code(), Some(0), "{shell}");
        assert_eq!(rig.run("echo on").await.out(), "on\n", "{shell}");
    });
}

#[test]
fn stdin_is_the_commands_own() {
    for_each_shell(async |rig, shell| {
        let mut spec = rig.spec("read line; echo \"[$line]\"; cat");
        spec.stdin = true;
        let done = rig.run_spec(&spec, b"first\nrest").await;
        assert_eq!(done.out(), "[first]\nrest", "{shell}");
        // Without one it is at its end, and never the driver's script.
        let done = rig.run("cat; read x; echo $?").await;
        assert_eq!(done.out(), "1\n", "{shell}");
        let mut spec = rig.spec("true");
        spec.stdin = true;
        assert_eq!(rig.run_spec(&spec, b"unread").await.code(), Some(0), "{shell}");
        assert_eq!(rig.run("echo on").await.out(), "on\n", "{shell}");
    });
}

#[test]
fn fault_64_a_command_inherits_no_descriptor_of_ours() {
    for_each_shell(async |rig, shell| {
        let done = rig.run("ls /proc/self/fd; env").await;
        // The fourth is the directory's.
        assert!(done.out().starts_with("0\n1\n2\n3\n"), "{shell}: {}", done.out());
        assert!(!done.out().starts_with("0\n1\n2\n3\n4"), "{shell}: {}", done.out());
        let ours: Vec<_> = done.out().lines().filter(|line| line.starts_with("AFAR_")).collect();
        assert_eq!(ours.len(), 2, "{shell}: {ours:?}");
        assert!(ours.contains(&"AFAR_JOB_ID=j1"), "{shell}: {ours:?}");
    });
}

#[test]
fn background_jobs_go_on_and_can_be_waited_for() {
    for_each_shell(async |rig, shell| {
        let done = rig.run("sh -c 'read x; exit 6' </dev/null & p=$!; echo fg").await;
        assert_eq!((done.out(), done.code()), ("fg\n", Some(0)), "{shell}");
        assert_eq!(rig.run("wait $p; echo $?").await.out(), "6\n", "{shell}");
    });
}

#[test]
fn traps_run_where_a_prompt_would_run_them() {
    for_each_shell(async |rig, shell| {
        let done = rig.run("trap 'echo got' TERM; kill $$; echo on").await;
        assert_eq!((done.out(), done.code()), ("got\non\n", Some(0)), "{shell}");
        assert_eq!(rig.run("kill $$; echo on").await.out(), "got\non\n", "{shell}");
        let done = rig.run("trap 'exit 9' EXIT; exit 1").await;
        assert_eq!((done.code(), done.seal.session_restarted), (Some(9), true), "{shell}");
    });
}

#[test]
fn stderr_can_go_where_stdout_goes() {
    for_each_shell(async |rig, shell| {
        let mut spec = rig.spec("echo a; echo b >&2; echo c; nonexistent-program; echo d");
        spec.merge = true;
        let done = rig.run_spec(&spec, b"").await;
        let lines: Vec<_> = done.out().lines().collect();
        assert_eq!(lines[..3], ["a", "b", "c"], "{shell}");
        assert!(lines[3].contains("not found") && lines[4] == "d", "{shell}: {lines:?}");
        assert_eq!(done.err(), "", "{shell}");
    });
}

#[test]
fn an_error_that_ends_a_script_leaves_the_shell_where_it_can() {
    for_each_shell(async |rig, shell| {
        rig.run("cd /usr; readonly r=1").await;
        for text in ["r=2; echo not reached", "cd /nonexistent-directory", "echo ${x?no}"] {
            let done = rig.run(text).await;
            assert_ne!(done.code(), Some(0), "{shell}: {text}");
            assert_eq!(done.out(), "", "{shell}: {text}");
            let ends = shell != "/bin/dash" && text.contains('?');
            assert_eq!(done.seal.session_restarted, ends, "{shell}: {text}");
        }
    });
}
