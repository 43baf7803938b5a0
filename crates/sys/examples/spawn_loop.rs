//! Measures the floor under every job: posix_spawn of `true`, two pipes read to their ends by poll,
//! and the wait.
//!
//! `spawn_loop [COUNT] [IN_FLIGHT]` prints `spawns_per_s N`; by default 2,000 in sequence.

use afar_sys::child::{Child, ExitStatus, Session};
use afar_sys::exec_strings::exec_strings;
use afar_sys::pipe::pipe_from_child;
use afar_sys::spawn::{SpawnRequest, Stdio, spawn};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, read};
use std::error::Error;
use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let count: u32 = arguments.next().as_deref().unwrap_or("2000").parse()?;
    let in_flight_max: usize = arguments.next().as_deref().unwrap_or("1").parse()?;

    let null = File::open("/dev/null")?;
    let argv = exec_strings(["true"])?;
    let env =
        exec_strings(std::env::vars_os().map(|(name, value)| {
            [name.as_encoded_bytes(), b"=", value.as_encoded_bytes()].concat()
        }))?;
    let start = Instant::now();
    let mut in_flight: Vec<Job> = Vec::new();
    let mut started = 0;
    while started < count || !in_flight.is_empty() {
        while started < count && in_flight.len() < in_flight_max.max(1) {
            in_flight.push(Job::start(&null, &argv, &env)?);
            started += 1;
        }
        wait_for_any(&in_flight)?;
        for job in &mut in_flight {
            job.advance()?;
        }
        in_flight.retain(|job| !job.is_done());
    }
    let per_second = f64::from(count) / start.elapsed().as_secs_f64();
    writeln!(std::io::stdout(), "spawns_per_s {per_second:.0}")?;
    Ok(())
}

/// One `true` with the read ends of its output, each `None` after its end.
struct Job {
    child: Child,
    outputs: [Option<OwnedFd>; 2],
    ended: bool,
}

impl Job {
    fn start(null: &File, argv: &[CString], env: &[CString]) -> Result<Self, Box<dyn Error>> {
        let stdout = pipe_from_child()?;
        let stderr = pipe_from_child()?;
        let child = spawn(&SpawnRequest {
            program: c"/bin/true",
            argv,
            env,
            cwd: None,
            stdio: Stdio::Descriptors {
                stdin: null.as_fd(),
                stdout: stdout.childs.as_fd(),
                stderr: stderr.childs.as_fd(),
            },
            session: Session::New,
            open_files_soft: None,
        })?;
        Ok(Self { child, outputs: [Some(stdout.ours), Some(stderr.ours)], ended: false })
    }

    fn is_done(&self) -> bool {
        self.ended && self.outputs.iter().all(Option::is_none)
    }

    fn advance(&mut self) -> Result<(), Box<dyn Error>> {
        let mut buffer = [0; 4096];
        for output in &mut self.outputs {
            let Some(fd) = output else { continue };
            match read(fd, &mut buffer) {
                Ok(0) => *output = None,
                Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if self.ended {
            return Ok(());
        }
        if let Some(ended) = self.child.try_wait()? {
            if ended.status != (ExitStatus::Exited { code: 0 }) {
                return Err(format!("true failed: {:?}", ended.status).into());
            }
            self.ended = true;
        }
        Ok(())
    }
}

fn wait_for_any(jobs: &[Job]) -> Result<(), Errno> {
    let mut fds = Vec::with_capacity(jobs.len() * 3);
    for job in jobs {
        if !job.ended {
            fds.push(PollFd::new(&job.child, PollFlags::IN));
        }
        fds.extend(job.outputs.iter().flatten().map(|fd| PollFd::new(fd, PollFlags::IN)));
    }
    match poll(&mut fds, None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error),
    }
}
