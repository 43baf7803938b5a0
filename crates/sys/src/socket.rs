//! Sockets: unix sockets of any path length, who is at the other end, and the options of TCP.

use crate::errno;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Uid, chownat, fchmod, lstat, open, unlink};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, ipproto, listen,
    socket_with, sockopt,
};
use std::ffi::c_int;
use std::io;
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `sun_path` holds 108 bytes; the last is the NUL that portable programs expect.
const UNIX_PATH_BYTES_MAX: usize = 107;

/// Who is at the other end of a unix socket: the one who connected, or, seen by that one, the one who
/// listens. Told by the kernel when the connection was made, so it cannot be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCredentials {
    /// The process, or `None` for one that our pid namespace does not show. It may have ended, and
    /// the number be another's: good for a log, not for a decision.
    pub pid: Option<i32>,
    /// Its effective user id then.
    pub uid: u32,
    /// Its effective group id then.
    pub gid: u32,
}

/// The peer of a connected unix socket (SO_PEERCRED).
///
/// # Errors
/// Those of getsockopt(2). A socket that has no peer, or is of another family, is no error: its
/// credentials are those of nobody, uid and gid `u32::MAX`.
pub fn peer_credentials(socket: impl AsFd) -> io::Result<PeerCredentials> {
    let mut peer = MaybeUninit::<libc::ucred>::zeroed();
    let mut bytes = socklen_of::<libc::ucred>();
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the pointer is to writable memory of `bytes` bytes; both outlive the call.
    let code = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            peer.as_mut_ptr().cast(),
            &raw mut bytes,
        )
    };
    errno::of_minus_one(code)?;
    // SAFETY: three integers, zeroed first and then filled in by the call.
    let peer = unsafe { peer.assume_init() };
    Ok(PeerCredentials { pid: (peer.pid > 0).then_some(peer.pid), uid: peer.uid, gid: peer.gid })
}

/// Listens on a unix socket at `path`, however long that is. The socket is blocking.
///
/// A path of more than 107 bytes is bound through a descriptor of its directory, for which `/proc`
/// must be mounted.
///
/// # Errors
/// `EADDRINUSE` when there is something at `path` (see [`remove_stale_socket`]); `ENAMETOOLONG` when
/// the last component alone is too long; those of open(2), bind(2), listen(2).
pub fn listen_unix(path: &Path, backlog: u16) -> io::Result<UnixListener> {
    let socket = unix_socket()?;
    let short = ShortPath::of(path)?;
    bind(&socket, &SocketAddrUnix::new(short.path.as_path())?)?;
    listen(&socket, i32::from(backlog))?;
    Ok(socket.into())
}

/// Binds a unix socket at `path` that only the user `owner` may connect to, and root; nobody may until
/// somebody calls [`listen_bound`]. For root, in a directory that nobody else can change.
///
/// # Errors
/// As [`listen_unix`], and those of chown(2).
pub fn bind_unix_for(path: &Path, owner: u32) -> io::Result<OwnedFd> {
    let socket = unix_socket()?;
    let short = ShortPath::of(path)?;
    // The mode of the file is that of the socket less the mask (unix(7)), which is of all threads.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &SocketAddrUnix::new(short.path.as_path())?)?;
    chownat(CWD, path, Some(Uid::from_raw(owner)), None, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(socket)
}

/// Listens on a socket that was bound. Whoever connects is told the ids that this process has now, not
/// those of who has bound it. The socket is blocking.
///
/// # Errors
/// `EINVAL` for one that is not bound, `ENOTSOCK` for what is no socket.
pub fn listen_bound(socket: OwnedFd, backlog: u16) -> io::Result<UnixListener> {
    listen(&socket, i32::from(backlog))?;
    Ok(socket.into())
}

/// Refuses every connection from now on, as if nobody listened; those that wait to be accepted can
/// still be. For a socket whose name its listener may not remove.
///
/// # Errors
/// `ENOTCONN` for what does not listen.
pub fn refuse_connections(listener: impl AsFd) -> io::Result<()> {
    Ok(rustix::net::shutdown(listener, rustix::net::Shutdown::Read)?)
}

/// Connects to the unix socket at `path`, however long that is. The socket is blocking, and so is
/// this call while the listener's backlog is full.
///
/// # Errors
/// `ENOENT` and `ECONNREFUSED` when nobody listens there; as [`listen_unix`] for long paths.
pub fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    let socket = unix_socket()?;
    let short = ShortPath::of(path)?;
    let address = SocketAddrUnix::new(short.path.as_path())?;
    loop {
        match connect(&socket, &address) {
            Ok(()) => return Ok(socket.into()),
            // Interrupted while waiting for room in the backlog: nothing has been queued.
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The same without ever waiting: one whose backlog is full, because it does not accept, is an error
/// and not a wait without end.
///
/// # Errors
/// As [`connect_unix`], and `EAGAIN` when the backlog is full.
pub fn connect_unix_at_once(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let short = ShortPath::of(path)?;
    connect(&socket, &SocketAddrUnix::new(short.path.as_path())?)?;
    rustix::io::ioctl_fionbio(&socket, false)?;
    Ok(socket.into())
}

/// Removes the socket that a listener left behind when it was killed. Returns whether there was one.
///
/// Only for who holds the lock of that listener: it is not checked whether somebody listens.
///
/// # Errors
/// `EEXIST` when there is something that is no socket, which stays; those of unlink(2).
pub fn remove_stale_socket(path: &Path) -> io::Result<bool> {
    match lstat(path) {
        Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::Socket => {
            unlink(path)?;
            Ok(true)
        }
        Ok(_) => Err(Errno::EXIST.into()),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Listens on a TCP address, also while connections of an earlier listener linger there
/// (SO_REUSEADDR). An IPv6 address takes IPv6 connections only, whatever the system's default, so that
/// `0.0.0.0` and `[::]` can be given together. The socket is blocking.
///
/// # Errors
/// `EADDRINUSE`, `EADDRNOTAVAIL`, `EACCES` (ports below 1024), `EAFNOSUPPORT` (no IPv6 here).
pub fn listen_tcp(address: SocketAddr, backlog: u16) -> io::Result<TcpListener> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::TCP))?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    bind(&socket, &address)?;
    listen(&socket, i32::from(backlog))?;
    Ok(socket.into())
}

/// Sends at once what is written (TCP_NODELAY). Without it a small write waits for the peer's
/// delayed acknowledgement: 40 ms.
///
/// # Errors
/// `EOPNOTSUPP` for what is no TCP socket.
pub fn set_tcp_nodelay(socket: impl AsFd) -> io::Result<()> {
    Ok(sockopt::set_tcp_nodelay(socket, true)?)
}

/// Asks for a send buffer of `bytes` (SO_SNDBUF); the kernel grants at most its own limit
/// (`/proc/sys/net/core/wmem_max`).
///
/// # Errors
/// Those of setsockopt(2), none of which an open socket has for this.
pub fn set_send_buffer(socket: impl AsFd, bytes: usize) -> io::Result<()> {
    Ok(sockopt::set_socket_send_buffer_size(socket, bytes)?)
}

/// Bounds what waits unsent in the kernel (TCP_NOTSENT_LOWAT): above it the socket is not writable,
/// so that a small urgent write stands behind at most that much.
///
/// # Errors
/// `EOPNOTSUPP` for what is no TCP socket.
pub fn set_tcp_notsent_lowat(socket: impl AsFd, bytes: u32) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the pointer is to an integer of the stated size, which is only read.
    let code = unsafe {
        libc::setsockopt(
            fd,
            libc::IPPROTO_TCP,
            libc::TCP_NOTSENT_LOWAT,
            (&raw const bytes).cast(),
            socklen_of::<u32>(),
        )
    };
    errno::of_minus_one(code)?;
    Ok(())
}

/// When a silent TCP peer is asked for a sign of life, and when it is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first probe; whole seconds, at least one.
    pub idle: Duration,
    /// Time between probes; whole seconds, at least one.
    pub interval: Duration,
    /// Unanswered probes after which the connection fails; 1 to 127.
    pub probes: u32,
    /// How long sent data may stay unacknowledged before the connection fails (TCP_USER_TIMEOUT):
    /// keepalive says nothing while data is in flight. Zero leaves that to the kernel's retries, and
    /// lets a peer that is there take nothing for as long as it likes.
    pub unacknowledged: Duration,
}

/// Turns on keepalive.
///
/// # Errors
/// `EINVAL` for a value outside its bounds, `EOPNOTSUPP` for what is no TCP socket.
pub fn set_tcp_keepalive(socket: impl AsFd, keepalive: Keepalive) -> io::Result<()> {
    sockopt::set_tcp_keepidle(&socket, keepalive.idle)?;
    sockopt::set_tcp_keepintvl(&socket, keepalive.interval)?;
    sockopt::set_tcp_keepcnt(&socket, keepalive.probes)?;
    let unacknowledged_ms =
        u32::try_from(keepalive.unacknowledged.as_millis()).map_err(|_| Errno::INVAL)?;
    sockopt::set_tcp_user_timeout(&socket, unacknowledged_ms)?;
    Ok(sockopt::set_socket_keepalive(&socket, true)?)
}

fn unix_socket() -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
}

/// A path to the same file that fits into a socket address.
struct ShortPath {
    path: PathBuf,
    /// Keeps `/proc/self/fd/N` meaning the directory. `Some` iff the path had to be shortened.
    _directory: Option<OwnedFd>,
}

impl ShortPath {
    fn of(path: &Path) -> Result<Self, Errno> {
        if path.as_os_str().len() <= UNIX_PATH_BYTES_MAX {
            return Ok(Self { path: path.to_owned(), _directory: None });
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Errno::INVAL);
        };
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = open(parent, flags, Mode::empty())?;
        let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
        if short.as_os_str().as_bytes().len() > UNIX_PATH_BYTES_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        Ok(Self { path: short, _directory: Some(directory) })
    }
}

/// The size of a C type in the type that socket calls want.
fn socklen_of<T>() -> libc::socklen_t {
    const { assert!(size_of::<T>() <= c_int::MAX as usize) };
    #[expect(clippy::cast_possible_truncation, reason = "the assertion above bounds it")]
    let bytes = size_of::<T>() as libc::socklen_t;
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use tempfile::TempDir;

    #[test]
    fn the_peer_of_a_unix_socket_is_told() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = peer_credentials(&one).unwrap();
        assert_eq!(peer.uid, crate::users::effective_uid());
        assert_eq!(peer.pid, i32::try_from(std::process::id()).ok());
    }

    fn exchange(path: &Path) {
        let listener = listen_unix(path, 8).unwrap();
        let mut client = connect_unix(path).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"hello").unwrap();
        drop(client);
        let mut text = String::new();
        server.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn paths_of_every_length_are_bound_and_reached() {
        let root = TempDir::new().unwrap();
        exchange(&root.path().join("s"));
        let base = root.path().as_os_str().len();
        for total in [106, 107, 108, 109, 250] {
            let directory = root.path().join("d".repeat(total - base - "//s".len()));
            std::fs::create_dir(&directory).unwrap();
            let path = directory.join("s");
            assert_eq!(path.as_os_str().len(), total);
            exchange(&path);
        }
    }

    #[test]
    fn a_bound_socket_takes_nobody_until_it_is_listened_on_and_is_its_owners_alone() {
        use std::os::unix::fs::MetadataExt;
        let root = TempDir::new().unwrap();
        let path = root.path().join("s");
        // Only root can give a file away.
        let own = crate::users::effective_uid();
        let owner = if own == 0 { 12345 } else { own };
        let bound = bind_unix_for(&path, owner).unwrap();
        let file = std::fs::metadata(&path).unwrap();
        assert_eq!((file.uid(), file.mode() & 0o777), (owner, 0o600));
        let early = connect_unix_at_once(&path).unwrap_err();
        assert_eq!(early.kind(), io::ErrorKind::ConnectionRefused);
        let listener = listen_bound(bound, 8).unwrap();
        let client = connect_unix_at_once(&path).unwrap();
        assert_eq!(peer_credentials(&client).unwrap().uid, own);
        refuse_connections(&listener).unwrap();
        let late = connect_unix_at_once(&path).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::ConnectionRefused);
        // Who came before that is not lost.
        listener.set_nonblocking(true).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.write_all(b"x").unwrap();
        drop(server);
        let mut text = String::new();
        (&client).read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
        assert!(listener.accept().is_err());
    }

    #[test]
    fn a_listener_that_does_not_accept_is_not_waited_for() {
        let root = TempDir::new().unwrap();
        let path = root.path().join("s");
        let _listener = listen_unix(&path, 1).unwrap();
        let mut queued = Vec::new();
        let refused = loop {
            match connect_unix_at_once(&path) {
                Ok(stream) => queued.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        assert!((1..10).contains(&queued.len()), "{}", queued.len());
    }

    #[test]
    fn a_last_component_that_is_too_long_is_refused() {
        let root = TempDir::new().unwrap();
        let refused = listen_unix(&root.path().join("n".repeat(150)), 8).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENAMETOOLONG));
    }

    #[test]
    fn a_stale_socket_is_removed_and_nothing_else() {
        // Children of tests in other threads hold our descriptors for the instant before their exec.
        if !crate::rig::alone("socket::tests::a_stale_socket_is_removed_and_nothing_else") {
            return;
        }
        let root = TempDir::new().unwrap();
        let path = root.path().join("s");
        assert!(!remove_stale_socket(&path).unwrap());
        drop(listen_unix(&path, 8).unwrap());
        assert_eq!(connect_unix(&path).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(listen_unix(&path, 8).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert!(remove_stale_socket(&path).unwrap());
        drop(listen_unix(&path, 8).unwrap());

        let file = root.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(remove_stale_socket(&file).is_err());
        assert!(file.exists());
    }

    #[test]
    fn a_tcp_listener_can_take_over_an_address_that_still_has_connections() {
        // Children of tests in other threads hold our descriptors for the instant before their exec.
        if !crate::rig::alone(
            "socket::tests::a_tcp_listener_can_take_over_an_address_that_still_has_connections",
        ) {
            return;
        }
        let listener = listen_tcp("127.0.0.1:0".parse().unwrap(), 8).unwrap();
        let address = listener.local_addr().unwrap();
        let client = std::net::TcpStream::connect(address).unwrap();
        let (server, _) = listener.accept().unwrap();
        drop(listener);
        // The side that closes first keeps the address for a while.
        drop(server);
        let _again = listen_tcp(address, 8).unwrap();
        drop(client);
    }

    #[test]
    fn tcp_options_are_set() {
        let listener = listen_tcp("127.0.0.1:0".parse().unwrap(), 8).unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        set_tcp_nodelay(&client).unwrap();
        assert!(client.nodelay().unwrap());
        set_tcp_notsent_lowat(&client, 131_072).unwrap();
        let keepalive = Keepalive {
            idle: Duration::from_secs(15),
            interval: Duration::from_secs(5),
            probes: 3,
            unacknowledged: Duration::from_secs(30),
        };
        set_tcp_keepalive(&client, keepalive).unwrap();
        assert!(sockopt::socket_keepalive(&client).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&client).unwrap(), keepalive.idle);
        assert_eq!(sockopt::tcp_user_timeout(&client).unwrap(), 30_000);

        let (unix, _) = UnixStream::pair().unwrap();
        assert!(set_tcp_nodelay(&unix).is_err());
        assert!(set_tcp_notsent_lowat(&unix, 1).is_err());
    }

    #[test]
    fn ipv4_and_ipv6_share_a_port() {
        // Children of tests in other threads hold our descriptors for the instant before their exec.
        if !crate::rig::alone("socket::tests::ipv4_and_ipv6_share_a_port") {
            return;
        }
        let Ok(six) = listen_tcp("[::]:0".parse().unwrap(), 8) else {
            eprintln!("skipped: no IPv6 on this machine");
            return;
        };
        let port = six.local_addr().unwrap().port();
        listen_tcp(SocketAddr::from(([0, 0, 0, 0], port)), 8).unwrap();
    }
}
