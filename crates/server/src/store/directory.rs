//! A directory of the store: this user's alone, and nothing in it is followed elsewhere (`J-5.8`).

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use afar_sys::private_files::{PrivateDirError, ensure_private_dir};
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, fstat, mkdirat, openat, renameat, unlinkat,
};
use rustix::io::Errno;

/// Why the store can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Its directory is not this user's alone.
    #[error("{0}")]
    Directory(#[from] PrivateDirError),
    /// Another supervisor has it: of another machine on the same home, or in another container.
    #[error("{path:?} is in use by another supervisor")]
    InUse {
        /// The lock.
        path: PathBuf,
    },
    /// A later afar has written it. It is left as it is.
    #[error("{path:?} is of a later version of afar's than this one")]
    Later {
        /// Which file.
        path: PathBuf,
    },
    /// Something that is no file of ours stands where one should.
    #[error("{path:?} is not a regular file of this user's; move it away")]
    Planted {
        /// Where.
        path: PathBuf,
    },
    /// Others may read or write it.
    #[error("{path:?} is open to other users; run chmod go= on it")]
    Exposed {
        /// What.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {action} {path:?}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// An open directory, by which everything in it is reached.
#[derive(Debug)]
pub struct Directory {
    descriptor: OwnedFd,
    path: PathBuf,
}

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To be read.
    Read,
    /// To be written from its beginning, made if it is missing.
    Rewrite,
    /// To be written; nothing may stand there yet.
    Create,
}

impl Directory {
    /// Opens a directory with mode 0700, made with its parents if it is missing.
    ///
    /// # Errors
    /// It can't be made, or it is not this user's alone.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self { descriptor: ensure_private_dir(path)?, path: path.to_owned() })
    }

    /// Its path, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a file in it; `None` if there is none.
    pub(super) fn file(&self, name: &str, purpose: Purpose) -> Result<Option<OwnedFd>, StoreError> {
        let how = match purpose {
            Purpose::Read => OFlags::RDONLY,
            Purpose::Rewrite => OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC,
            Purpose::Create => OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL,
        };
        // Nothing that stands there may make us wait, as a FIFO would.
        let flags = how | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let opened = openat(&self.descriptor, name, flags, Mode::RUSR | Mode::WUSR);
        let file = match opened {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP | Errno::NXIO | Errno::ISDIR) => return Err(self.planted(name)),
            Err(error) => return Err(self.error("open", name)(error.into())),
        };
        let found = fstat(&file).map_err(|error| self.error("look at", name)(error.into()))?;
        let is_ours = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile
            && found.st_uid == afar_sys::users::effective_uid();
        if !is_ours {
            return Err(self.planted(name));
        }
        self.check_mode(name, found.st_mode)?;
        Ok(Some(file))
    }

    /// As [`Self::file`], where there has to be one.
    pub(super) fn existing_file(
        &self,
        name: &str,
        purpose: Purpose,
    ) -> Result<OwnedFd, StoreError> {
        let opened = self.file(name, purpose)?;
        opened.ok_or_else(|| self.error("open", name)(Errno::NOENT.into()))
    }

    /// The first bytes of a file, at most so many; nothing if there is no file.
    pub(super) fn read(&self, name: &str, bytes_max: u64) -> Result<Vec<u8>, StoreError> {
        use std::io::Read as _;
        let Some(file) = self.file(name, Purpose::Read)? else { return Ok(Vec::new()) };
        let mut bytes = Vec::new();
        std::fs::File::from(file)
            .take(bytes_max)
            .read_to_end(&mut bytes)
            .map_err(self.error("read", name))?;
        Ok(bytes)
    }

    /// Gives a file another name, in one step, whatever had that name.
    pub(super) fn rename(&self, from: &str, to: &str) -> Result<(), StoreError> {
        renameat(&self.descriptor, from, &self.descriptor, to)
            .map_err(|error| self.error("rename", from)(error.into()))
    }

    /// Removes a file; one that is not there is no error.
    pub(super) fn remove(&self, name: &str) -> Result<(), StoreError> {
        match unlinkat(&self.descriptor, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(self.error("remove", name)(error.into())),
        }
    }

    /// A directory in it; `None` if there is none and none is to be made.
    pub(super) fn subdirectory(&self, name: &str, make: bool) -> Result<Option<Self>, StoreError> {
        if make {
            match mkdirat(&self.descriptor, name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(self.error("make", name)(error.into())),
            }
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        let descriptor = match openat(&self.descriptor, name, flags, Mode::empty()) {
            Ok(descriptor) => descriptor,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP | Errno::NOTDIR) => return Err(self.planted(name)),
            Err(error) => return Err(self.error("open", name)(error.into())),
        };
        let found =
            fstat(&descriptor).map_err(|error| self.error("look at", name)(error.into()))?;
        if found.st_uid != afar_sys::users::effective_uid() {
            return Err(self.planted(name));
        }
        self.check_mode(name, found.st_mode)?;
        Ok(Some(Self { descriptor, path: self.path.join(name) }))
    }

    /// Refuses what others may use.
    fn check_mode(&self, name: &str, mode: u32) -> Result<(), StoreError> {
        if Mode::from_raw_mode(mode).intersects(Mode::RWXG | Mode::RWXO) {
            return Err(StoreError::Exposed { path: self.path.join(name) });
        }
        Ok(())
    }

    /// The names in it, in no order.
    pub(super) fn names(&self) -> Result<Vec<OsString>, StoreError> {
        let listed = Dir::read_from(&self.descriptor).and_then(|entries| {
            entries.map(|entry| Ok(entry?.file_name().to_bytes().to_vec())).collect()
        });
        let names: Vec<Vec<u8>> =
            listed.map_err(|error: Errno| self.error("list", "")(error.into()))?;
        let own = |name: &Vec<u8>| name != b"." && name != b"..";
        Ok(names.into_iter().filter(own).map(OsString::from_vec).collect())
    }

    /// Its descriptor, for what is done to the directory itself.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    pub(super) fn error(
        &self,
        action: &'static str,
        name: &str,
    ) -> impl FnOnce(io::Error) -> StoreError + use<> {
        let path = if name.is_empty() { self.path.clone() } else { self.path.join(name) };
        move |source| StoreError::Io { action, path, source }
    }

    fn planted(&self, name: &str) -> StoreError {
        StoreError::Planted { path: self.path.join(name) }
    }
}
