//! Starts real processes for the tests of this crate, and leaves none behind.

use crate::child::{Child, Ended, Session};
use crate::exec_strings::{exec_string, exec_strings};
use crate::process_tree::{KillReport, find_tree, kill_tree};
use crate::signals::Signal;
use crate::spawn::{Confinement, SpawnError, SpawnRequest, Stdio, spawn, spawn_confined};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::XattrFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// Far beyond anything that a healthy machine needs: reaching it means that the event never comes.
const PATIENCE: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };
const ALONE: &str = "AFAR_SYS_TEST_ALONE";

/// Whether this is a process in which only `test` runs. In the usual one, with its many threads, it
/// runs that process, checks that the test has passed there, and returns `false`.
///
/// For what belongs to a whole process: limits, dispositions, descriptors 0 to 2, being a subreaper.
pub(crate) fn alone(test: &str) -> bool {
    if std::env::var(ALONE).is_ok_and(|name| name == test) {
        return true;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", test, "--nocapture"]).env(ALONE, test).output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert!(stdout.contains("1 passed"), "no test of the name {test}: {stdout}");
    false
}

/// Blocks until `fd` can be read or has been hung up.
pub(crate) fn until_readable(fd: impl AsFd) {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&PATIENCE)), Ok(1), "the event never came");
}

/// What a request has besides its strings; by default three pipes, a new session, our directory.
#[derive(Clone, Copy, Default)]
pub(crate) struct Options<'a> {
    pub(crate) cwd: Option<&'a CStr>,
    pub(crate) stdio: Option<Stdio<'a>>,
    pub(crate) session: Session,
    pub(crate) open_files_soft: Option<u64>,
    pub(crate) confinement: Option<Confinement<'a>>,
}

/// A new session running `/bin/sh -c script` or another program, with a mark in its environment.
/// Its whole tree is killed on drop, which fails the test if anybody is left.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) stdin: Option<File>,
    pub(crate) stdout: File,
    pub(crate) stderr: File,
    pub(crate) mark: CString,
}

impl Running {
    pub(crate) fn script(script: &str) -> Self {
        Self::program("/bin/sh", &["sh", "-c", script], &["PATH=/bin:/usr/bin"]).unwrap()
    }

    pub(crate) fn program(program: &str, argv: &[&str], env: &[&str]) -> Result<Self, SpawnError> {
        Self::with(program, argv, env, Options::default())
    }

    pub(crate) fn with(
        program: &str,
        argv: &[&str],
        env: &[&str],
        options: Options<'_>,
    ) -> Result<Self, SpawnError> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let mark = format!("AFAR_JOB_ID=test-{}-{number}", std::process::id());
        let mark = exec_string(mark.as_bytes()).unwrap();
        let [stdin, stdout, stderr] = [(); 3].map(|()| pipe_with(PipeFlags::CLOEXEC).unwrap());
        let program = exec_string(program.as_bytes()).unwrap();
        let argv = exec_strings(argv).unwrap();
        let mut env = exec_strings(env).unwrap();
        env.push(mark.clone());
        let request = SpawnRequest {
            program: &program,
            argv: &argv,
            env: &env,
            cwd: options.cwd,
            stdio: options.stdio.unwrap_or(Stdio::Descriptors {
                stdin: stdin.0.as_fd(),
                stdout: stdout.1.as_fd(),
                stderr: stderr.1.as_fd(),
            }),
            session: options.session,
            open_files_soft: options.open_files_soft,
        };
        let child = match &options.confinement {
            Some(confinement) => spawn_confined(&request, confinement)?,
            None => spawn(&request)?,
        };
        let file = |fd: OwnedFd| File::from(fd);
        Ok(Self {
            child,
            stdin: Some(file(stdin.1)),
            stdout: file(stdout.0),
            stderr: file(stderr.0),
            mark,
        })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.pid()
    }

    /// One line of stdout, without its end.
    pub(crate) fn line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        loop {
            until_readable(&self.stdout);
            self.stdout.read_exact(&mut byte).unwrap();
            if byte == *b"\n" {
                return String::from_utf8(line).unwrap();
            }
            line.push(byte[0]);
        }
    }

    /// All of stdout up to its end, that is until no process holds it any longer.
    pub(crate) fn rest_of_stdout(&mut self) -> String {
        read_to_end(&mut self.stdout)
    }

    pub(crate) fn rest_of_stderr(&mut self) -> String {
        read_to_end(&mut self.stderr)
    }

    pub(crate) fn wait(&mut self) -> Ended {
        if self.child.try_wait().unwrap().is_none() {
            until_readable(&self.child);
        }
        self.child.try_wait().unwrap().unwrap()
    }

    pub(crate) fn kill_tree(&self, signal: Signal) -> KillReport {
        kill_tree(&self.child.tree_root(), self.mark.as_bytes(), signal).unwrap()
    }

    /// The pids of the tree, sorted.
    pub(crate) fn tree(&self) -> Vec<i32> {
        let tree = find_tree(&self.child.tree_root(), self.mark.as_bytes()).unwrap();
        let mut pids: Vec<_> = tree.iter().map(|process| process.id.pid).collect();
        pids.sort_unstable();
        pids
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stdin = None;
        let report = kill_tree(&self.child.tree_root(), self.mark.as_bytes(), Signal::KILL);
        let ended = self.child.wait();
        if !std::thread::panicking() {
            assert!(report.unwrap().settled);
            ended.unwrap();
            // Whoever the kill has missed still holds stdout.
            self.rest_of_stdout();
        }
    }
}

fn read_to_end(file: &mut File) -> String {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        until_readable(&*file);
        match file.read(&mut buffer).unwrap() {
            0 => return String::from_utf8(all).unwrap(),
            count => all.extend_from_slice(&buffer[..count]),
        }
    }
}

/// A cgroup of this test's own that is delegated to it, removed on drop with what is in it; `None`, said
/// so, where none can be made: that takes root and a kernel with cgroup v2.
pub(crate) struct Cgroup {
    pub(crate) path: PathBuf,
}

impl Cgroup {
    pub(crate) fn new() -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("afar-test-{}-{number}", std::process::id());
        let made = hierarchy().and_then(|root| {
            let path = root.join(name);
            std::fs::create_dir(&path).ok()?;
            let cgroup = Self { path };
            let marked =
                rustix::fs::setxattr(&cgroup.path, "user.delegate", b"1", XattrFlags::empty());
            marked.ok().map(|()| cgroup)
        });
        if made.is_none() {
            let test = std::thread::current().name().unwrap_or_default().to_owned();
            assert!(std::env::var_os("CI").is_none(), "CI must be able to make cgroups");
            let _ = writeln!(std::io::stderr(), "SKIPPED, no cgroup v2 can be written: {test}");
        }
        made
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = std::fs::write(self.path.join("cgroup.kill"), "1");
        remove_cgroups(&self.path);
    }
}

/// Waits for the end of what was killed, from the leaves to the root.
fn remove_cgroups(path: &Path) {
    for entry in std::fs::read_dir(path).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            remove_cgroups(&entry.path());
        }
    }
    while std::fs::read_to_string(path.join("cgroup.events")).unwrap().contains("populated 1") {
        std::thread::yield_now();
    }
    std::fs::remove_dir(path).unwrap();
}

/// The root of the hierarchy, where it is mounted so that it can be written.
fn hierarchy() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let found = fields.find(
        |fields| matches!(fields[..], [_, _, "cgroup2", options, ..] if options.starts_with("rw")),
    )?;
    Some(PathBuf::from(found[1]))
}

/// `/proc/PID/NAME` as text.
pub(crate) fn proc_file(pid: i32, name: &str) -> String {
    let path = Path::new("/proc").join(pid.to_string()).join(name);
    String::from_utf8(std::fs::read(path).unwrap()).unwrap()
}
