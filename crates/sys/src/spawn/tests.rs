//! Tests of what a started process inherits, and what it does not.

use super::*;
use crate::child::ExitStatus;
use crate::exec_strings::{exec_string, exec_strings};
use crate::resolve::{SpawnFailure, diagnose};
use crate::rig::{Options, Running, alone, proc_file, until_readable};
use crate::signals::{Signal, default_sigchld};
use rustix::io::{FdFlags, dup, fcntl_setfd};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{getsid, setrlimit};
use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

fn exited(code: u8) -> ExitStatus {
    ExitStatus::Exited { code }
}

fn signaled(signal: Signal) -> ExitStatus {
    ExitStatus::Signaled { signal, core: false }
}

/// What starting `program` with one more argument fails with.
fn failure(program: &Path, argument: &str, cwd: &Path) -> SpawnFailure {
    let cwd_string = exec_string(cwd.to_str().unwrap().as_bytes()).unwrap();
    let started = Running::with(
        program.to_str().unwrap(),
        &["x", argument],
        &[],
        Options { cwd: Some(&cwd_string), ..Options::default() },
    );
    let Err(SpawnError::NotStarted(error)) = started.map(|running| running.pid()) else {
        panic!("{program:?} was started");
    };
    diagnose(error, program, cwd)
}

fn script(directory: &Path, name: &str, content: &str, mode: u32) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    path
}

/// The session that `/proc` tells of a process: 0 where its leader is outside our pid namespace, as
/// for everything that a container's runtime starts, which `getsid` of rustix does not expect.
fn session_number(pid: impl std::fmt::Display) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, after_the_name) = stat.rsplit_once(')').unwrap();
    after_the_name.split_whitespace().nth(3).unwrap().parse().unwrap()
}

#[test]
fn output_and_status_come_back() {
    let mut running = Running::script("echo out; echo err >&2; exit 44");
    assert_eq!(running.rest_of_stdout(), "out\n");
    assert_eq!(running.rest_of_stderr(), "err\n");
    assert_eq!(running.wait().status, exited(44));
    assert_eq!(running.child.try_wait().unwrap().unwrap().status, exited(44));
}

#[test]
fn fault_49_a_signal_is_not_an_exit_with_128_and_more() {
    assert_eq!(Running::script("kill -TERM $$").wait().status, signaled(Signal::TERM));
    assert_eq!(Running::script("kill -KILL $$").wait().status, signaled(Signal::KILL));
    assert_eq!(Running::script("exit 143").wait().status, exited(143));
}

#[test]
fn fault_48_a_program_that_exits_127_has_run() {
    assert_eq!(Running::script("exit 127").wait().status, exited(127));
}

#[test]
fn what_it_used_is_counted() {
    let mut running =
        Running::script("i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; echo done");
    assert_eq!(running.rest_of_stdout(), "done\n");
    let usage = running.wait().usage;
    assert!(!(usage.user + usage.system).is_zero(), "{usage:?}");
    assert!(usage.max_rss_bytes > 256 * 1024, "{usage:?}");
}

/// Descriptors, signals and environment are looked at from outside, while the program waits: a
/// program that listed its own would have one more.
#[test]
fn fault_64_a_child_inherits_three_descriptors_default_signals_and_an_empty_mask() {
    const NAME: &str = "spawn::tests::fault_64_a_child_inherits_three_descriptors_default_signals_and_an_empty_mask";
    if !alone(NAME) {
        return;
    }
    let leaked = dup(File::open("/dev/null").unwrap()).unwrap();
    let mut blocked = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is writable memory, which the call initialises.
    unsafe { libc::sigfillset(blocked.as_mut_ptr()) };
    // SAFETY: the set is initialised; a null old set is allowed.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, blocked.as_ptr(), std::ptr::null_mut()) };
    for signal in [libc::SIGUSR1, libc::SIGHUP, libc::SIGINT, libc::SIGPIPE, libc::SIGRTMIN()] {
        // SAFETY: an ignored signal runs no handler.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }

    let mut running = Running::program("/bin/cat", &["cat"], &["ONLY=this"]).unwrap();
    // The loader's own descriptors are closed once the program has answered.
    running.stdin.as_mut().unwrap().write_all(b"ready\n").unwrap();
    assert_eq!(running.line(), "ready");

    let mut descriptors: Vec<_> = fs::read_dir(format!("/proc/{}/fd", running.pid()))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    descriptors.sort();
    assert_eq!(descriptors, ["0", "1", "2"]);

    let status = proc_file(running.pid(), "status");
    for name in ["SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd"] {
        let line = format!("{name}:\t0000000000000000");
        assert!(status.lines().any(|found| found == line), "{status}");
    }
    let mark = running.mark.to_str().unwrap();
    assert_eq!(proc_file(running.pid(), "environ"), format!("ONLY=this\0{mark}\0"));
    drop(leaked);
}

#[test]
fn argv_is_exact() {
    let argv = ["not the program's name", "-", "", "$HOME *", "a\nb"];
    let mut running = Running::program("/bin/echo", &argv, &[]).unwrap();
    assert_eq!(running.rest_of_stdout(), "-  $HOME * a\nb\n");
    let mut running = Running::program("/bin/cat", &argv[..2], &[]).unwrap();
    running.stdin.as_mut().unwrap().write_all(b"ready\n").unwrap();
    assert_eq!(running.line(), "ready");
    assert_eq!(proc_file(running.pid(), "cmdline"), "not the program's name\0-\0");
}

#[test]
fn argv_has_at_least_one_string() {
    let started = Running::program("/bin/true", &[], &[]);
    assert_eq!(started.err(), Some(SpawnError::EmptyArgv));
}

#[test]
fn it_runs_in_the_directory_that_was_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().canonicalize().unwrap();
    let cwd = exec_string(path.to_str().unwrap().as_bytes()).unwrap();
    let mut running = Running::with(
        "/bin/pwd",
        &["pwd", "-P"],
        &[],
        Options { cwd: Some(&cwd), ..Options::default() },
    )
    .unwrap();
    assert_eq!(Path::new(running.rest_of_stdout().trim_end()), path);
}

#[test]
fn it_leads_a_session_unless_asked_otherwise() {
    let running = Running::script("read line");
    let pid = Pid::from_raw(running.pid());
    assert_eq!(getsid(pid).ok(), pid);

    let mut running = Running::with(
        "/bin/cat",
        &["cat"],
        &[],
        Options { session: Session::Inherited, ..Options::default() },
    )
    .unwrap();
    assert_eq!(session_number(running.pid()), session_number(std::process::id()));
    assert_eq!(running.child.signal_group(Signal::TERM), Err(Errno::INVAL));
    running.stdin = None;
    assert_eq!(running.wait().status, exited(0));
}

#[test]
fn signals_reach_the_process_or_its_group_and_nobody_after_the_reaping() {
    let mut running = Running::script("sleep 1000 & echo; wait");
    running.line();
    assert_eq!(running.child.try_wait(), Ok(None));
    running.child.signal_group(Signal::TERM).unwrap();
    // Ends only when the sleep in the background has died too.
    assert_eq!(running.rest_of_stdout(), "");
    assert_eq!(running.wait().status, signaled(Signal::TERM));
    assert_eq!(running.child.signal_group(Signal::TERM), Err(Errno::SRCH));
    assert_eq!(running.child.signal(Signal::TERM), Err(Errno::SRCH));

    let mut running = Running::script("trap 'echo caught; exit 3' USR1; echo; read line");
    running.line();
    running.child.signal(Signal::USR1).unwrap();
    assert_eq!(running.line(), "caught");
    assert_eq!(running.wait().status, exited(3));
}

#[test]
fn fault_45_a_string_of_128_kib_is_too_long_and_one_byte_less_is_not() {
    let longest = "x".repeat(128 * 1024 - 1);
    let mut running = Running::program("/bin/true", &["true", &longest], &[]).unwrap();
    assert_eq!(running.wait().status, exited(0));
    let longer = format!("{longest}x");
    let program = Path::new("/bin/true");
    assert_eq!(failure(program, &longer, Path::new("/")), SpawnFailure::TooLong);
}

#[test]
fn fault_45_arguments_and_environment_together_over_arg_max_are_too_long() {
    let argument = "x".repeat(128 * 1024 - 1);
    let argv = vec![argument.as_str(); 100];
    let started = Running::program("/bin/true", &argv, &[]);
    assert_eq!(started.err(), Some(SpawnError::NotStarted(Errno::TOOBIG)));
    let variable = format!("A={}", &argument[2..]);
    let env = vec![variable.as_str(); 100];
    let started = Running::program("/bin/true", &["true"], &env);
    assert_eq!(started.err(), Some(SpawnError::NotStarted(Errno::TOOBIG)));
}

#[test]
fn fault_48_every_reason_for_not_starting_is_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let root = Path::new("/");

    let program = here.join("gone");
    assert_eq!(failure(&program, "", root), SpawnFailure::NotFound { program });

    let program = script(here, "data", "#!/bin/sh\n", 0o644);
    assert_eq!(failure(&program, "", root), SpawnFailure::NotExecutable { program });

    let program = here.to_owned();
    assert_eq!(failure(&program, "", root), SpawnFailure::IsDirectory { program });

    let program = script(here, "windows", "#!/bin/sh\r\necho\r\n", 0o755);
    let interpreter = PathBuf::from("/bin/sh\r");
    assert_eq!(failure(&program, "", root), SpawnFailure::BadInterpreter { program, interpreter });

    let program = script(here, "unsaid", "echo\n", 0o755);
    assert_eq!(failure(&program, "", root), SpawnFailure::BadFormat { program });

    let sh = Path::new("/bin/sh");
    let cwd = here.join("gone");
    assert_eq!(failure(sh, "", &cwd), SpawnFailure::MissingCwd { cwd });
    let cwd = here.join("data");
    assert_eq!(failure(sh, "", &cwd), SpawnFailure::CwdNotDirectory { cwd });
}

#[test]
fn fault_61_without_a_free_descriptor_nothing_is_started() {
    if !alone("spawn::tests::fault_61_without_a_free_descriptor_nothing_is_started") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let witness = directory.path().join("ran").to_str().unwrap().to_owned();
    let null = File::open("/dev/null").unwrap();
    let argv = exec_strings(["touch", &witness]).unwrap();
    let request = SpawnRequest {
        program: c"/usr/bin/touch",
        argv: &argv,
        env: &[],
        cwd: None,
        stdio: Stdio::Descriptors {
            stdin: null.as_fd(),
            stdout: null.as_fd(),
            stderr: null.as_fd(),
        },
        session: Session::New,
        open_files_soft: None,
    };
    let ours = getrlimit(Resource::Nofile);
    let none_left = Rlimit { current: Some(u64::try_from(null.as_raw_fd()).unwrap()), ..ours };
    setrlimit(Resource::Nofile, none_left).unwrap();
    let refused = spawn(&request);
    setrlimit(Resource::Nofile, ours).unwrap();
    assert_eq!(refused.err(), Some(SpawnError::NotStarted(Errno::MFILE)));
    assert!(!Path::new(&witness).exists());

    assert_eq!(spawn(&request).unwrap().wait().unwrap().status, exited(0));
    assert!(Path::new(&witness).exists());
}

#[test]
fn the_childs_limit_of_descriptors_is_not_our_raised_one() {
    if !alone("spawn::tests::the_childs_limit_of_descriptors_is_not_our_raised_one") {
        return;
    }
    let raised = crate::inherit::raise_nofile_limit().unwrap();
    let argv = ["sh", "-c", "read line; ulimit -Sn; ulimit -Hn"];
    let mut running = Running::with(
        "/bin/sh",
        &argv,
        &[],
        Options { open_files_soft: Some(123), ..Options::default() },
    )
    .unwrap();
    running.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    assert_eq!(running.line(), "123");
    assert_eq!(running.line(), raised.now.map_or("unlimited".to_owned(), |hard| hard.to_string()));
    assert_eq!(getrlimit(Resource::Nofile).current, raised.now);
}

#[test]
fn fault_50_a_status_that_was_lost_is_an_error_and_no_number() {
    if !alone("spawn::tests::fault_50_a_status_that_was_lost_is_an_error_and_no_number") {
        return;
    }
    let (stdin_reader, stdin_writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let null = File::open("/dev/null").unwrap();
    let argv = exec_strings(["cat"]).unwrap();
    let request = SpawnRequest {
        program: c"/bin/cat",
        argv: &argv,
        env: &[],
        cwd: None,
        stdio: Stdio::Descriptors {
            stdin: stdin_reader.as_fd(),
            stdout: null.as_fd(),
            stderr: null.as_fd(),
        },
        session: Session::New,
        open_files_soft: None,
    };
    let mut child = spawn(&request).unwrap();
    // SAFETY: an ignored signal runs no handler. This is how a careless parent may start us.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    assert_eq!(spawn(&request).err(), Some(SpawnError::OutcomeLost));
    drop(stdin_writer);
    until_readable(&child);
    assert_eq!(child.try_wait(), Err(Errno::CHILD));

    default_sigchld();
    assert_eq!(spawn(&request).unwrap().wait().unwrap().status, exited(0));
}

/// Our stdout becomes its stderr and our stderr its stdout, all three close-on-exec here: as long as
/// its own target a descriptor must lose that mark, and none may be overwritten before its use.
#[test]
fn standard_descriptors_can_be_given_crosswise() {
    const NAME: &str = "spawn::tests::standard_descriptors_can_be_given_crosswise";
    const CROSSED: &str = "AFAR_SYS_TEST_CROSSED";
    if std::env::var_os(CROSSED).is_some() {
        use rustix::stdio::{stderr, stdin, stdout};
        for fd in [stdin(), stdout(), stderr()] {
            fcntl_setfd(fd, FdFlags::CLOEXEC).unwrap();
        }
        let mut running = Running::with(
            "/bin/sh",
            &["sh", "-c", "cat; echo to stderr >&2"],
            &["PATH=/bin"],
            Options {
                stdio: Some(Stdio::Descriptors {
                    stdin: stdin(),
                    stdout: stderr(),
                    stderr: stdout(),
                }),
                ..Options::default()
            },
        )
        .unwrap();
        assert_eq!(running.wait().status, exited(0));
        return;
    }
    let (stdin_reader, stdin_writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", NAME, "--nocapture"]).env(CROSSED, "1").stdin(stdin_reader);
    let mut stdin = File::from(stdin_writer);
    stdin.write_all(b"through cat").unwrap();
    drop(stdin);
    let output = command.output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert!(stdout.contains("to stderr") && !stdout.contains("through cat"), "{stdout}");
    assert!(stderr.contains("through cat") && !stderr.contains("to stderr"), "{stderr}");
}

#[test]
fn a_terminal_becomes_the_controlling_one() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let path = ptsname(&master, Vec::new()).unwrap();
    let ask = "[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && tty && echo through >/dev/tty; read line";
    let running = Running::with(
        "/bin/sh",
        &["sh", "-c", ask],
        &["PATH=/bin:/usr/bin"],
        Options { stdio: Some(Stdio::Terminal { path: &path }), ..Options::default() },
    )
    .unwrap();
    let mut master = File::from(master);
    let expected = format!("{}\r\nthrough\r\n", path.to_str().unwrap());
    let mut shown = Vec::new();
    while shown.len() < expected.len() {
        until_readable(&master);
        let mut buffer = [0; 256];
        let count = master.read(&mut buffer).unwrap();
        shown.extend_from_slice(&buffer[..count]);
    }
    assert_eq!(String::from_utf8(shown).unwrap(), expected);
    drop(running);
}
