//! Where clients come in to a supervisor, and the lock that makes it the only one there.
//!
//! A supervisor that its user has started makes both in its own directory. One that root has started
//! for the user was passed both, because they are in a directory of root's; there it can't remove the
//! socket, so it stops listening in another way.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};

use afar_proto::json::ByteString;
use afar_sys::exec::{take_kept, take_passed};
use afar_sys::private_files::try_lock_exclusive;
use afar_sys::socket::{listen_bound, listen_unix, refuse_connections, remove_stale_socket};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};

use super::{SupervisorError, io_error};
use crate::paths::{LOCK_NAME, SOCKET_NAME, runtime_dir};

/// Connections that the kernel may hold until they are accepted.
const BACKLOG: u16 = 1024;

/// The socket of the one supervisor. The lock is held as long as this is there.
pub(super) struct Socket {
    listener: UnixListener,
    kind: Kind,
    /// Device and inode of the socket's file, where the place is our own.
    file: Option<(u64, u64)>,
}

/// What is known before there is a runtime to listen with.
pub(super) struct Claim {
    kind: Kind,
    /// `Some` iff it was passed.
    bound: Option<OwnedFd>,
}

enum Kind {
    Own { path: PathBuf, lock: OwnedFd },
    Passed { lock: OwnedFd },
}

/// A socket as it is written down for an upgrade.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WrittenSocket {
    /// `None` iff it was passed by root.
    own_path: Option<ByteString>,
    listener: RawFd,
    lock: RawFd,
}

impl WrittenSocket {
    pub(super) fn descriptors(&self) -> [RawFd; 2] {
        [self.listener, self.lock]
    }

    /// Takes what it names, in the program that goes on with it.
    pub(super) fn claim(&self) -> io::Result<Claim> {
        let (bound, lock) = (take_kept(self.listener)?, take_kept(self.lock)?);
        let kind = match &self.own_path {
            Some(path) => {
                let path = PathBuf::from(std::ffi::OsString::from_vec(path.0.clone()));
                Kind::Own { path, lock }
            }
            None => Kind::Passed { lock },
        };
        Ok(Claim { kind, bound: Some(bound) })
    }
}

impl Claim {
    /// The place in this user's own directory, or `None` if another supervisor has it.
    pub(super) fn own() -> Result<Option<Self>, SupervisorError> {
        let directory = runtime_dir()?;
        let lock = try_lock_exclusive(&directory.join(LOCK_NAME))
            .map_err(io_error("cannot take the supervisor's lock"))?;
        let path = directory.join(SOCKET_NAME);
        Ok(lock.map(|lock| Self { kind: Kind::Own { path, lock }, bound: None }))
    }

    /// The place that [`as_user`](crate::launch::as_user) has taken. To be called before any
    /// descriptor is opened.
    pub(super) fn passed() -> Result<Self, SupervisorError> {
        let take = |index| {
            take_passed(index).map_err(|error| io_error("nothing was passed on")(error.into()))
        };
        Ok(Self::of_passed(take(0)?, take(1)?))
    }

    /// A place of root's: its socket, which is bound, and its lock.
    pub(super) fn of_passed(bound: OwnedFd, lock: OwnedFd) -> Self {
        Self { kind: Kind::Passed { lock }, bound: Some(bound) }
    }

    /// What can be listened on again: nothing, where the place is not ours. Then the lock is free, and
    /// whoever comes next starts a supervisor beside this one, which only serves whom it has.
    pub(super) fn renewable(self) -> Option<Self> {
        match self.kind {
            Kind::Own { .. } => Some(self),
            Kind::Passed { lock } => {
                // The guardian has the same lock open, and holds it no longer than we do.
                let _ = rustix::fs::flock(&lock, FlockOperation::NonBlockingUnlock);
                None
            }
        }
    }

    /// The lock alone, for the guardian: it is held until both have let go of it.
    pub(super) fn into_lock(self) -> OwnedFd {
        match self.kind {
            Kind::Own { lock, .. } | Kind::Passed { lock } => lock,
        }
    }

    /// Listens; to be called within the runtime.
    pub(super) fn listen(self) -> Result<Socket, SupervisorError> {
        let Self { kind, bound } = self;
        let listener = match (&kind, bound) {
            (_, Some(bound)) => listen_bound(bound, BACKLOG),
            // We hold the lock, so a socket that is there already is a dead supervisor's.
            (Kind::Own { path, .. }, None) => {
                remove_stale_socket(path).and_then(|_| listen_unix(path, BACKLOG))
            }
            (Kind::Passed { .. }, None) => Err(io::ErrorKind::NotConnected.into()),
        };
        let listener = listener.and_then(to_async).map_err(io_error("cannot listen"))?;
        let file = match &kind {
            Kind::Own { path, .. } => identity(path),
            Kind::Passed { .. } => None,
        };
        Ok(Socket { listener, kind, file })
    }
}

/// What a name stands for: device and inode.
fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

fn to_async(listener: StdListener) -> io::Result<UnixListener> {
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

impl Socket {
    /// The next one who connects.
    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }

    /// Whether nobody can find it any more: a runtime directory goes when its user logs out, and what
    /// is in `/tmp` when it is old.
    pub(super) fn is_lost(&self) -> bool {
        match &self.kind {
            Kind::Own { path, .. } => identity(path) != self.file,
            Kind::Passed { .. } => false,
        }
    }

    /// Another socket in the place of one that is lost; `None` if another supervisor has the place by
    /// now.
    pub(super) fn renew(&self) -> Result<Option<Self>, SupervisorError> {
        let Kind::Own { path, lock } = &self.kind else { return Ok(None) };
        let locked = rustix::fs::fstat(lock).map_err(|error| io_error("no lock")(error.into()))?;
        let claim =
            if identity(&path.with_file_name(LOCK_NAME)) == Some((locked.st_dev, locked.st_ino)) {
                // Only the socket is gone, and the place is still ours.
                let lock = lock.try_clone().map_err(io_error("cannot keep the lock"))?;
                Some(Claim { kind: Kind::Own { path: path.clone(), lock }, bound: None })
            } else {
                Claim::own()?
            };
        claim.map(Claim::listen).transpose()
    }

    /// Nobody can connect any more; whoever connects from now on finds no supervisor, and starts the
    /// next one.
    pub(super) fn refuse(&self) {
        match &self.kind {
            // Where it is gone, another supervisor's may be in its place.
            Kind::Own { .. } if self.is_lost() => {}
            Kind::Own { path, .. } => {
                let _ = std::fs::remove_file(path);
            }
            Kind::Passed { .. } => {
                let _ = refuse_connections(&self.listener);
            }
        }
    }

    /// Where it is, by the numbers of its descriptors.
    pub(super) fn write_down(&self) -> WrittenSocket {
        let (own_path, lock) = match &self.kind {
            Kind::Own { path, lock } => (Some(path.as_os_str().as_bytes().to_vec()), lock),
            Kind::Passed { lock } => (None, lock),
        };
        WrittenSocket {
            own_path: own_path.map(ByteString),
            listener: self.listener.as_raw_fd(),
            lock: lock.as_raw_fd(),
        }
    }

    /// Ends listening. Returns those who had connected before that and were not accepted yet, and the
    /// place, with its lock.
    pub(super) fn close(self) -> Result<(Vec<UnixStream>, Claim), SupervisorError> {
        self.refuse();
        let failed = io_error("cannot close the socket");
        let listener = self.listener.into_std().map_err(&failed)?;
        let mut late = Vec::new();
        while let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(true).map_err(&failed)?;
            late.push(UnixStream::from_std(stream).map_err(&failed)?);
        }
        Ok((late, Claim { kind: self.kind, bound: None }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(path: PathBuf) -> Claim {
        let lock = try_lock_exclusive(&path.with_file_name(LOCK_NAME)).unwrap().unwrap();
        Claim { kind: Kind::Own { path, lock }, bound: None }
    }

    #[tokio::test]
    async fn a_socket_that_is_gone_is_noticed_and_renewed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(SOCKET_NAME);
        let socket = claim(path.clone()).listen().unwrap();
        assert!(!socket.is_lost());
        std::fs::remove_file(&path).unwrap();
        assert!(socket.is_lost());
        let renewed = socket.renew().unwrap().unwrap();
        assert!(!renewed.is_lost());
        drop(socket);
        let (connected, accepted) = tokio::join!(UnixStream::connect(&path), renewed.accept());
        assert!(connected.is_ok() && accepted.is_ok());
        // The lock is still the only one.
        assert!(try_lock_exclusive(&path.with_file_name(LOCK_NAME)).unwrap().is_none());
    }

    #[tokio::test]
    async fn whoever_has_connected_before_the_end_is_not_lost_and_the_lock_is_held_to_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(SOCKET_NAME);
        let passed = try_lock_exclusive(&directory.path().join("passed")).unwrap().unwrap();
        let bound = afar_sys::socket::bind_unix_for(
            &directory.path().join("passed.sock"),
            afar_sys::users::effective_uid(),
        );
        let passed = Claim::of_passed(bound.unwrap(), passed);
        for (claim, socket, lock) in [
            (claim(path.clone()), path.clone(), path.with_file_name(LOCK_NAME)),
            (passed, directory.path().join("passed.sock"), directory.path().join("passed")),
        ] {
            let open = claim.listen().unwrap();
            let _late = UnixStream::connect(&socket).await.unwrap();
            let (late, claim) = open.close().unwrap();
            assert_eq!(late.len(), 1);
            assert!(UnixStream::connect(&socket).await.is_err());
            assert!(try_lock_exclusive(&lock).unwrap().is_none());
            drop(claim);
            assert!(try_lock_exclusive(&lock).unwrap().is_some());
        }
    }

    #[tokio::test]
    async fn the_socket_of_another_supervisor_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(SOCKET_NAME);
        let first = claim(path.clone()).listen().unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::remove_file(path.with_file_name(LOCK_NAME)).unwrap();
        let second = claim(path).listen().unwrap();
        first.close().unwrap();
        assert!(!second.is_lost());
    }
}
