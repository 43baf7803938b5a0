//! The system calls afar needs, behind safe functions; the only crate with unsafe code.
//!
//! Everything here is synchronous and for Linux only, with glibc (2.34 or newer) or musl. Nothing
//! blocks unless its documentation says so, so that the supervisor can call all of it from its one
//! thread. Every descriptor that is made here is close-on-exec.
//!
//! Errors are [`Errno`] where a caller decides by the number (spawning, waiting, signalling) and
//! [`std::io::Error`] where it only passes them on.

#![expect(unsafe_code, reason = "this crate is where the workspace keeps its unsafe code")]

pub mod boot;
pub mod cgroup;
pub mod child;
pub mod descriptor_passing;
mod errno;
pub mod exec;
pub mod exec_strings;
pub mod guard;
pub mod identity;
pub mod inherit;
pub mod memory;
pub mod pipe;
pub mod private_files;
pub mod process_tree;
pub mod pty;
pub mod random;
pub mod readiness;
pub mod resolve;
#[cfg(test)]
mod rig;
pub mod shadow;
pub mod signals;
pub mod socket;
pub mod spawn;
pub mod tcp_peer;
pub mod terminal;
pub mod users;

pub use rustix::io::Errno;
