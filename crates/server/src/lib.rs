//! Afar's server side: the listener that lets clients in, and the supervisor that runs their jobs.
//!
//! They are two processes. The [`listener`] faces the network, authenticates, and hands connections
//! on; it parses nothing of a job and runs nothing. The [`supervisor`], one a user, speaks the job protocol and owns every pipe and child of its user. [`launch`] reaches a
//! supervisor and starts it where there is none; [`stdio`] is a listener of another kind, on what sshd
//! has let in, and [`classic`] one for scripts that speak another protocol. The
//! [`store`] is what a supervisor writes down of its jobs.

pub mod classic;
mod guardian;
pub mod launch;
pub mod limits;
pub mod listener;
mod local_files;
pub mod log;
mod lost_jobs;
pub mod monitor;
pub mod paths;
pub mod stdio;
pub mod store;
pub mod supervisor;
