//! The rig of the end-to-end tests: a real `afar serve`, real clients, a real sshd, on loopback.
//!
//! A test in `tests/` is named after a behaviour and reads like this:
//!
//! ```no_run
//! use afar_e2e::Host;
//!
//! let host = Host::start();
//! let output = host.run(["--", "printf", "%s|", "a b", "$HOME"]).output();
//! assert_eq!(output.success().text(), "a b|$HOME|");
//! ```
//!
//! The rules that the rig keeps, so that no test has to:
//!
//! - **No sleeps.** Everything waits for an event with a deadline: a line ([`Running::line`]), the
//!   end of a process ([`Process::wait`]), the end of everything that a host runs
//!   ([`Host::wait_until_idle`]). A deadline that passes ends the program and fails the test with
//!   what was there by then.
//! - **Nothing is left behind.** Everything that a [`Host`] starts lives below a [`reaper`], which
//!   adopts whatever is orphaned there. When the host is dropped, whatever still runs below it, its
//!   listener and its supervisor apart, fails the test and is killed by its pid. When the test
//!   program itself is killed, the reapers kill everything.
//! - **Nothing of the person who runs the tests** is read or written by afar: home, XDG directories
//!   and keys are the test's own. (The home of *jobs* is the account's: they are logins.)
//!
//! Afar is the program that `AFAR_BIN` names (`cargo xtask test` sets it). Without it, cargo builds
//! it in the profile that the tests are built in.
//!
//! [`reaper`]: crate::process

mod account;
mod binary;
mod cgroup;
mod client;
mod deadline;
mod fifo;
mod flow;
mod home;
mod host;
pub mod process;
mod proxy;
pub mod raw;
mod reaper;
mod screen;
mod sshd;
mod terminal;

pub use account::{Account, can_make_accounts};
pub use binary::afar;
pub use cgroup::Cgroup;
pub use client::{Output, Run, Running};
pub use deadline::{DEADLINE, Deadline};
pub use fifo::Fifo;
pub use flow::{Digest, Random, Sink, Source};
pub use home::Home;
pub use host::{Host, HostBuilder};
pub use process::{Memory, Process};
pub use proxy::{Direction, Proxy};
pub use screen::Screen;
pub use sshd::Sshd;
pub use terminal::Terminal;

/// Fails the test.
#[expect(clippy::panic, reason = "a test fails by a panic")]
#[track_caller]
pub(crate) fn fail(message: &str) -> ! {
    panic!("{message}");
}
