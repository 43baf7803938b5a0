//! What a supervisor writes down of its jobs, so that what it knows outlives it: the
//! [`Archive`], made of the [`Journal`] of
//! their starts and ends, their output in [`Spools`], and the
//! [`Index`] of those that have ended (chapter 5 of `docs/spec/jobs.md`).
//!
//! Formats and decisions are `afar_core`'s ([`journal`](afar_core::journal),
//! [`record`](afar_core::record)); here are the files.

mod archive;
mod directory;
mod disk;
mod index;
mod journal;
pub mod limits;
mod retry;
#[cfg(test)]
pub(crate) mod rig;
mod spool;
mod thread;

pub use archive::{Archive, ArchiveConfig, Begun, NewJob, OpenedArchive, tend};
pub use directory::{Directory, StoreError};
pub use disk::{Disk, RealDisk};
pub use index::{EndedJob, Index, IndexError, Told, Use};
pub use journal::{Beginning, Journal, JournalError, Opened};
pub use spool::{
    Quotas, ReadPiece, Room, SpoolEvent, SpoolFailure, SpoolRead, SpoolReader, SpoolWriter, Spools,
};
