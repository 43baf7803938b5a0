//! Disks that fail on purpose, for the store's tests.

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::sync::Mutex;

use rustix::io::Errno;

use super::disk::{Disk, RealDisk};

/// A disk that takes so many bytes more, and then has this to say.
#[derive(Debug)]
pub(crate) struct FailingDisk(Mutex<Failing>);

#[derive(Clone, Copy, Debug)]
struct Failing {
    room: Option<(usize, Errno)>,
    sync: Option<Errno>,
    syncs: usize,
    writes: usize,
}

impl FailingDisk {
    pub(crate) fn sound() -> Self {
        Self(Mutex::new(Failing { room: None, sync: None, syncs: 0, writes: 0 }))
    }

    /// Takes `room` bytes and then no more.
    pub(crate) fn full_after(&self, room: usize, error: Errno) {
        self.0.lock().unwrap().room = Some((room, error));
    }

    /// Can't synchronise.
    pub(crate) fn fail_sync(&self, error: Errno) {
        self.0.lock().unwrap().sync = Some(error);
    }

    /// How often it was asked to synchronise.
    pub(crate) fn syncs(&self) -> usize {
        self.0.lock().unwrap().syncs
    }

    /// How often it was asked to write.
    pub(crate) fn writes(&self) -> usize {
        self.0.lock().unwrap().writes
    }

    /// Lets everybody wait who writes, until this is dropped.
    pub(crate) fn stop(&self) -> impl Drop + '_ {
        self.0.lock().unwrap()
    }

    /// Takes everything again.
    pub(crate) fn mend(&self) {
        let mut failing = self.0.lock().unwrap();
        failing.room = None;
        failing.sync = None;
    }
}

impl Disk for FailingDisk {
    fn write(&self, file: BorrowedFd<'_>, parts: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        let mut failing = self.0.lock().unwrap();
        failing.writes += 1;
        let Some((room, error)) = &mut failing.room else {
            return RealDisk.write(file, parts, at);
        };
        let mut bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        bytes.truncate(*room);
        if bytes.is_empty() {
            return Err((*error).into());
        }
        *room -= bytes.len();
        RealDisk.write(file, &[IoSlice::new(&bytes)], at)
    }

    fn sync(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        let mut failing = self.0.lock().unwrap();
        failing.syncs += 1;
        match failing.sync {
            Some(error) => Err(error.into()),
            None => RealDisk.sync(file),
        }
    }
}
