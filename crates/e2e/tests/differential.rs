//! The same commands through real ssh and sshd and through afar: stdout, stderr and status agree, or
//! the difference is one that is meant, and asserted.
//!
//! Both give the command to the same user's shell as one word (`ssh HOST WORD`, `afar run HOST -c
//! WORD`) on the same machine.

use std::sync::atomic::{AtomicUsize, Ordering};

use afar_e2e::{Host, Output, Sshd};

/// What is expected of a command.
enum Expect {
    /// All three agree.
    Same,
    /// They differ, for this reason; the function is given ssh's and afar's output.
    Differs(&'static str, fn(&Output, &Output) -> bool),
}

use Expect::{Differs, Same};

struct Case {
    command: &'static str,
    stdin: &'static str,
    expect: Expect,
}

const fn same(command: &'static str) -> Case {
    Case { command, stdin: "", expect: Same }
}

const fn fed(command: &'static str, stdin: &'static str) -> Case {
    Case { command, stdin, expect: Same }
}

const fn differs(
    command: &'static str,
    why: &'static str,
    check: fn(&Output, &Output) -> bool,
) -> Case {
    Case { command, stdin: "", expect: Differs(why, check) }
}

/// ssh's exit status for a command that a signal ended, whatever the signal.
fn told_apart(ssh: &Output, afar: &Output, signal: i32) -> bool {
    ssh.code() == 255 && afar.code() == 128 + signal && ssh.stdout == afar.stdout
}

const SIGNAL: &str = "ssh ends with 255 for every signal; afar with 128 and the signal's number, as \
                      a shell does, and says which";

const CASES: &[Case] = &[
    // Exit statuses.
    same("true"),
    same("false"),
    same("exit 0"),
    same("exit 1"),
    same("exit 2"),
    same("exit 42"),
    same("exit 126"),
    same("exit 127"),
    same("exit 128"),
    same("exit 130"),
    same("exit 254"),
    same("exit 255"),
    same("exit 256"),
    same("exit 300"),
    same("sh -c 'exit 7'"),
    same("(exit 9)"),
    same("true | false"),
    same("false | true"),
    same("false; true"),
    // Words.
    same("echo hello"),
    same("echo 'a  b'  c"),
    same("printf '%s|' 'a b' '$HOME' '*' '\"q\"' ''"),
    same("printf '%s\\n' \"it's\" \\\"x\\\" \\\\ '\\'"),
    same("echo $((6*7))"),
    same("echo one; echo two; echo three"),
    same("echo one && echo two || echo three"),
    same("x=5; echo $x ${x}y ${nothing:-default}"),
    same("for i in 1 2 3; do echo $i; done"),
    same("echo / /etc/host*"),
    same("echo \"$(echo nested \"$(echo more)\")\""),
    same("printf 'no newline'"),
    same(""),
    same(":"),
    same("# only a comment"),
    same("  echo   spaces   "),
    same("echo a\necho b"),
    same("cat <<END\nhere $((1+1))\nEND"),
    same("echo \u{e4}\u{f6}\u{fc} \u{2713} \u{1f980}"),
    same("set -- a b c; echo $# $2"),
    same("f() { echo in f $1; return 3; }; f x"),
    same("trap 'echo bye' EXIT; echo hi; exit 4"),
    // Streams.
    same("echo err >&2"),
    same("echo out; echo err >&2; exit 5"),
    same("exec >&-; echo lost; exit 6"),
    same("exec 2>&-; echo lost >&2; echo kept"),
    same("exec >&- 2>&-; exit 44"),
    same("printf 'a\\0b\\377\\n'"),
    same("head -c 300000 /dev/zero | tr '\\0' x"),
    same("seq 1 100000"),
    same("seq 1 50000 >&2"),
    same("seq 1 100000 | tail -3"),
    same("yes | head -5"),
    same("yes | head -c 1000000 | wc -c"),
    // Stdin.
    fed("cat", "some text\n"),
    fed("cat", "no newline"),
    fed("cat", ""),
    fed("cat -n", "a\nb\nc\n"),
    fed("wc -c", "12345"),
    fed("read x; echo \"got $x\"; cat", "first\nrest\nof it\n"),
    fed("head -1", "first\nsecond\n"),
    fed("sort", "c\na\nb\n"),
    fed("true", "never read"),
    fed("exec <&-; echo closed", "never read"),
    fed("sh", "echo from stdin; exit 8\n"),
    fed("tr a-z A-Z; echo done", "shout"),
    fed("sleep 0; cat", "\0\u{1}\u{2}\r\n"),
    // Failures of the shell's own.
    same("afar-no-such-program"),
    same("/no/such/program"),
    same("/etc/passwd"),
    same("/"),
    same("cd /no/such/directory"),
    same("ls /no/such/file"),
    same("if"),
    same("echo 'unterminated"),
    same("exec afar-no-such-program"),
    same("readonly x=1; x=2; echo not reached"),
    same("set -e; false; echo not reached"),
    // Surroundings.
    same("pwd"),
    same("cd /; pwd"),
    same("echo $HOME $USER $LOGNAME $SHELL"),
    same("echo $0 $#"),
    same("echo $-"),
    same("id"),
    same("umask"),
    same("ulimit -n"),
    same("ulimit -c"),
    same("tty"),
    same("test -t 0; echo $?; test -t 1; echo $?; test -t 2; echo $?"),
    same("echo \"[$TERM] [$SSH_TTY]\""),
    same("stty size"),
    same("ps -o tty= -p $$"),
    same("trap '' TERM; kill -TERM $$; echo survived"),
    // What runs on.
    same("(sleep 0; echo later) & echo now; wait"),
    same("sleep 0.3 & echo now"),
    same("nohup sh -c 'exit 0' >/dev/null 2>&1 & wait $!; echo $?"),
    // Meant to differ.
    differs("kill -TERM $$", SIGNAL, |ssh, afar| told_apart(ssh, afar, 15)),
    differs("kill -KILL $$", SIGNAL, |ssh, afar| told_apart(ssh, afar, 9)),
    differs("ulimit -c 0; echo out; kill -SEGV $$", SIGNAL, |ssh, afar| told_apart(ssh, afar, 11)),
    differs("kill -HUP $$", SIGNAL, |ssh, afar| told_apart(ssh, afar, 1)),
    differs(
        "env | cut -d= -f1 | grep -E '^(SSH_|AFAR_)' | sort",
        "each tells a command of itself in variables of its own",
        |ssh, afar| {
            ssh.text() == "SSH_CLIENT\nSSH_CONNECTION\n"
                && afar.text() == "AFAR_JOB_ID\nAFAR_JOB_MARK\n"
        },
    ),
    differs(
        "grep -E '^Sig(Blk|Ign)' /proc/self/status",
        "sshd passes on the signals that it was itself started with as ignored (by a service \
         manager, a container, nohup); a job begins with every signal at its default",
        |ssh, afar| {
            let zeros = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n";
            ssh.code() == 0 && afar.code() == 0 && afar.text() == zeros
        },
    ),
    differs(
        "ps -o pid=,pgid=,sid= -p $$ | awk '{ print ($1 == $2), ($2 == $3) }'",
        "a job is a session of its own; the session of ssh's command is its own too",
        |ssh, afar| ssh.text() == afar.text() && afar.text() == "1 1\n",
    ),
];

#[test]
fn commands_do_the_same_through_ssh_and_through_afar() {
    assert!(CASES.len() >= 60, "{}", CASES.len());
    let sshd = Sshd::start();
    let host = Host::start();
    let next = AtomicUsize::new(0);
    // Most of an ssh's time is spent waiting, so that more than there are processors go at once.
    let problems: Vec<String> = std::thread::scope(|scope| {
        let work = || {
            let mut problems = Vec::new();
            while let Some(case) = CASES.get(next.fetch_add(1, Ordering::Relaxed)) {
                problems.extend(compare(&sshd, &host, case));
            }
            problems
        };
        let workers: Vec<_> = (0..6).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("no panic")).collect()
    });
    assert!(problems.is_empty(), "{}\nsshd: {}", problems.join("\n\n"), sshd.log());
}

fn compare(sshd: &Sshd, host: &Host, case: &Case) -> Option<String> {
    let ssh = sshd.ssh(&[], case.command).stdin(case.stdin).output();
    let afar = host.script(case.command).stdin(case.stdin).output();
    let same = ssh.status == afar.status && ssh.stdout == afar.stdout && ssh.stderr == afar.stderr;
    match &case.expect {
        Same if same => None,
        Same => Some(format!("{:?} differs:\n{ssh:?}\n{afar:?}", case.command)),
        Differs(_, check) if check(&ssh, &afar) => None,
        Differs(why, _) => {
            let command = case.command;
            Some(format!("{command:?} should differ so: {why}:\n{ssh:?}\n{afar:?}"))
        }
    }
}

/// What `ssh` does with its words, and `afar` with its own: one joins them for a shell, the other
/// one keeps them.
#[test]
fn words_without_a_shell_are_afars_own() {
    let sshd = Sshd::start();
    let host = Host::start();
    let ssh = sshd.ssh(&[], "printf").arg("%s,").arg("a b").output();
    // The shell there has split what was one word here.
    assert_eq!(ssh.success().text(), "a,b,");
    let afar = host.run(["printf", "%s,", "a b"]).output();
    assert_eq!(afar.success().text(), "a b,");
}

/// A daemon that keeps the output open holds ssh until it ends, and afar for its drain time.
#[test]
fn what_runs_on_holds_ssh_and_not_afar() {
    let sshd = Sshd::start();
    let host = Host::start();
    let end = host.fifo("end");
    let script = format!("sh -c 'read x <{}' & echo started", end.word());
    let mut ssh = sshd.ssh(&[], &script).spawn();
    assert_eq!(ssh.line().as_deref(), Some("started"));
    let output = host.script(&script).output();
    assert_eq!(output.success().text(), "started\n");
    assert!(ssh.process().is_running());
    end.release();
    end.release();
    assert_eq!(ssh.wait().code(), 0);
    host.wait_until_idle();
}
