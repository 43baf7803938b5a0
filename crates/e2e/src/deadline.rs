//! A moment by which an event has to come, and waits for descriptors until then.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long a test waits for anything unless it says otherwise. Far more than anything takes: it is
/// only reached when something hangs.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A moment by which an event has to come.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// So far from now.
    #[must_use]
    pub fn after(time: Duration) -> Self {
        Self(Instant::now() + time)
    }

    /// What is left until then; nothing once it has passed.
    #[must_use]
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Waits until the descriptor can be read, or has ended. False once the moment has passed.
    #[must_use]
    pub fn readable(self, fd: impl AsFd) -> bool {
        self.any_readable(&[fd.as_fd()]).is_some()
    }

    /// The first of the descriptors that can be read, or has ended; `None` once the moment has passed.
    #[must_use]
    pub fn any_readable(self, fds: &[std::os::fd::BorrowedFd<'_>]) -> Option<usize> {
        let mut polled: Vec<PollFd<'_>> =
            fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        loop {
            let left = self.left();
            let timeout = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            match poll(&mut polled, Some(&timeout)) {
                Ok(0) => return None,
                Ok(_) => return polled.iter().position(|fd| !fd.revents().is_empty()),
                Err(error) => {
                    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::Interrupted);
                }
            }
        }
    }
}
