//! What is typed while a command runs.

use std::future::pending;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::line_editor::Line;

/// Bytes of a line that the terminal hands over at once (termios(3), canonical mode).
const LINE_BYTES_MAX: usize = 4096;

/// The terminal, while nobody edits a line on it.
#[derive(Debug)]
pub(super) struct Typed {
    /// `None`: nobody types.
    terminal: Option<AsyncFd<OwnedFd>>,
}

impl Typed {
    /// Looks at stdin, if it is a terminal. It is left blocking, because it is shared with others: it
    /// is read only when it has a line.
    pub(super) fn watch(is_terminal: bool) -> Self {
        let watch = || {
            let copy = rustix::stdio::stdin().try_clone_to_owned().ok()?;
            afar_sys::readiness::watch(copy, Interest::READABLE).ok()
        };
        Self { terminal: is_terminal.then(watch).flatten() }
    }

    /// The next line. Cancellation safe.
    pub(super) async fn line(&self) -> Line {
        let Some(terminal) = &self.terminal else { return pending().await };
        loop {
            let Ok(mut guard) = terminal.readable().await else { return pending().await };
            if !has_line(terminal.get_ref()) {
                guard.clear_ready();
                continue;
            }
            // Still ready: there may be another line, which would be no new edge.
            guard.retain_ready();
            let mut buffer = [0; LINE_BYTES_MAX];
            return match rustix::io::read(terminal.get_ref(), &mut buffer) {
                Ok(0) => Line::End,
                Ok(count) => {
                    let line = buffer.get(..count).unwrap_or_default();
                    Line::Text(line.strip_suffix(b"\n").unwrap_or(line).to_vec())
                }
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => continue,
                // The terminal is gone, and SIGHUP on its way.
                Err(_) => pending().await,
            };
        }
    }
}

/// Whether a read would give a line, or the end, now.
fn has_line(terminal: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut polled = [PollFd::new(terminal, PollFlags::IN)];
    poll(&mut polled, Some(&now)).is_ok_and(|ready| ready > 0)
}
