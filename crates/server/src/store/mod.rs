//! What a supervisor writes down of its jobs, so that what it knows outlives it: the [`Journal`] of
//! their starts and ends, and their output in [`Spools`] (chapter 5 of `docs/spec/jobs.md`).
//!
//! Formats and decisions are `afar_core`'s ([`journal`](afar_core::journal),
//! [`record`](afar_core::record)); here are the files.

mod directory;
mod disk;
mod journal;
pub mod limits;
#[cfg(test)]
mod rig;
mod spool;

pub use directory::{Directory, StoreError};
pub use disk::{Disk, RealDisk};
pub use journal::{Beginning, Journal, JournalError, Opened};
pub use spool::{
    Quotas, ReadPiece, Room, SpoolEvent, SpoolFailure, SpoolRead, SpoolReader, SpoolWriter, Spools,
};
