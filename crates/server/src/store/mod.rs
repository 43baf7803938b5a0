//! What a supervisor writes down of its jobs, so that what it knows outlives it: the journal of their
//! starts and ends (`J-1.4`, chapter 5 of `docs/spec/jobs.md`).
//!
//! Formats and decisions are `afar_core`'s ([`journal`](afar_core::journal),
//! [`record`](afar_core::record)); here are the files.

mod directory;
mod disk;
mod journal;
pub mod limits;
#[cfg(test)]
mod rig;

pub use directory::{Directory, StoreError};
pub use disk::{Disk, RealDisk};
pub use journal::{Beginning, Journal, JournalError, Opened};
