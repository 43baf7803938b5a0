//! The seam between the store and the disk: where tests let the disk be full or broken.

use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;

use rustix::io::{Errno, pwritev};

/// What is asked of a disk that it may refuse.
pub trait Disk: Debug + Send + Sync {
    /// Writes some of these bytes at this position, and says how many.
    ///
    /// # Errors
    /// Those of pwritev(2).
    fn write(&self, file: BorrowedFd<'_>, parts: &[IoSlice<'_>], at: u64) -> io::Result<usize>;

    /// Waits until what was written can't be lost by a loss of power.
    ///
    /// # Errors
    /// Those of fdatasync(2).
    fn sync(&self, file: BorrowedFd<'_>) -> io::Result<()>;
}

/// The kernel's.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn write(&self, file: BorrowedFd<'_>, parts: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        loop {
            match pwritev(file, parts, at) {
                Err(Errno::INTR) => {}
                written => return Ok(written?),
            }
        }
    }

    fn sync(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        Ok(rustix::fs::fdatasync(file)?)
    }
}

/// Writes all of these bytes at this position.
///
/// # Errors
/// Those of [`Disk::write`]; some of the bytes may have been written.
pub(super) fn write_all(
    disk: &dyn Disk,
    file: BorrowedFd<'_>,
    mut parts: &mut [IoSlice<'_>],
    mut at: u64,
) -> io::Result<()> {
    IoSlice::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        let written = disk.write(file, parts, at)?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut parts, written);
        at += written as u64;
    }
    Ok(())
}
