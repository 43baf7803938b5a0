//! Afar's decisions without I/O: who may do what, which host is which, what a target means.
//!
//! Contents of files come in as bytes and the time comes in as an argument; answers go out.
//! Nothing here opens a file, reads a clock, or starts a task, so every rule can be tested with
//! a few lines of text, and fuzzed.
//!
//! | module | answers |
//! | --- | --- |
//! | [`authorized_keys`] | may this key log in, and under which restrictions |
//! | [`doorkeeper`] | may this address connect now, or must it wait |
//! | [`certificate`] | is this certificate good for that user, or that host |
//! | [`trusted_keys`] | is this authority trusted for everybody |
//! | [`revocation`] | is this key revoked |
//! | [`policy`] | may this grant do that |
//! | [`known_hosts`] | is this the host that the user knows |
//! | [`ssh_config`] | what the user's `~/.ssh/config` says about a host |
//! | [`target`], [`host_set`] | what `alice@web[01-40]:2327` means |
//! | [`key`] | what an SSH public key is called, and its fingerprint |
//! | [`journal`], [`spool`], [`record`] | what the store writes of jobs and their output, and what it makes of it when it reads |
//! | [`escape`] | how to show bytes that someone else chose |
//! | [`job`] | who may start a job, who is attached to it, what is kept of its output |
//! | [`hints`] | what to suggest when a program was not found |

pub mod account;
pub mod authorized_keys;
pub mod certificate;
pub mod config;
pub mod diagnostic;
pub mod doorkeeper;
pub mod duration;
pub mod escape;
pub mod hints;
pub mod host_set;
pub mod job;
pub mod journal;
pub mod key;
pub mod known_hosts;
pub mod limits;
mod pattern;
pub mod policy;
pub mod record;
pub mod revocation;
pub mod size;
pub mod spool;
pub mod ssh_config;
pub mod target;
mod text;
pub mod trusted_keys;
