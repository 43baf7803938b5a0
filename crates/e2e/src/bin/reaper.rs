//! Runs a program, adopts whatever is orphaned below it, and kills all of that should the test die.
//!
//! `afar-e2e-reaper NAME PROGRAM ARGUMENT…`: sends the program's pid to the abstract unix datagram
//! socket `NAME`, waits for an answer at `NAME-answer`, and ends as the program did once nothing
//! below is left.

use std::env;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitCode, ExitStatus};
use std::time::Duration;

use afar_e2e::Deadline;
use afar_e2e::process::kill_descendants;
use rustix::process::{
    PidfdFlags, WaitOptions, getpid, getppid, pidfd_open, set_child_subreaper, wait,
};

/// Longer than any test.
const LIFE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

fn main() -> ExitCode {
    let parent = getppid().expect("the test has started this");
    let parent = pidfd_open(parent, PidfdFlags::empty()).expect("the test is there");
    set_child_subreaper(Some(getpid())).expect("every kernel since 3.4 can");
    let mut arguments = env::args_os().skip(1);
    let name = arguments.next().expect("the first argument is the name of a socket");
    let name = name.into_string().expect("the name is plain ASCII");
    let program = arguments.next().expect("the second argument is the program");
    #[expect(clippy::zombie_processes, reason = "the loop below waits for every child")]
    let child = Command::new(program).args(arguments).spawn().expect("the program can be run");
    std::thread::spawn(move || {
        // The test was killed before it could clean up.
        if Deadline::after(LIFE_MAX).readable(&parent) {
            kill_descendants(std::process::id());
            std::process::exit(1);
        }
    });
    tell(&name, child.id());
    let mut code = 0;
    // ECHILD: nothing is left.
    while let Ok(waited) = wait(WaitOptions::empty()) {
        let Some((pid, status)) = waited else { continue };
        if u32::try_from(pid.as_raw_pid()) == Ok(child.id()) {
            let status = ExitStatus::from_raw(status.as_raw());
            code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(255);
        }
    }
    ExitCode::from(u8::try_from(code).unwrap_or(255))
}

/// Tells the pid and waits until it was looked up: from then on the program may be waited for.
fn tell(name: &str, pid: u32) {
    let address = |name: &str| SocketAddr::from_abstract_name(name).expect("the name is short");
    let socket = UnixDatagram::bind_addr(&address(&format!("{name}-answer")));
    let socket = socket.expect("the name belongs to the test");
    let told = socket.send_to_addr(pid.to_string().as_bytes(), &address(name));
    told.and_then(|_| socket.recv(&mut [0; 16])).expect("the test listens");
}
