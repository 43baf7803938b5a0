//! Whose process holds the other end of a TCP connection within this machine.
//!
//! TCP authenticates nobody, but where both ends are on one machine the kernel knows the user of the
//! other end's socket. It is asked by sock_diag(7), for exactly one socket: measured with 1,700
//! sockets on the machine that takes 0.07 ms, and reading `/proc/net/tcp` and `tcp6`, which list all
//! of them and may miss one while others come and go, 7 ms.

use crate::errno;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, getpeername, getsockname,
    netlink, recv, send, socket_with,
};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Who is at the other end of a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpPeer {
    /// A process on this machine holds it; the socket was made by this user.
    User(u32),
    /// It was on this machine and nobody holds it any more, or the connection has ended: nobody can
    /// tell whose it was. (The kernel gives such a socket's user as 0.)
    Gone,
    /// It is not on this machine, or in another network namespace, or lost without a trace.
    NotHere,
}

/// Whose the other end is. Does not block.
///
/// The answer is about the process that made the connection and no later one: it holds only if our
/// own socket is still connected after the look, and until then the kernel gives the same two
/// addresses and ports to nobody else.
///
/// # Errors
/// `EAFNOSUPPORT` for what is no socket of the internet; the kernel has no sock_diag for TCP, or does not
/// let this process use it.
pub fn tcp_peer(socket: impl AsFd) -> io::Result<TcpPeer> {
    let local = SocketAddr::try_from(getsockname(&socket)?)?;
    let peer = match getpeername(&socket) {
        Ok(Some(peer)) => SocketAddr::try_from(peer)?,
        Ok(None) => return Err(Errno::INVAL.into()),
        Err(Errno::NOTCONN) => return Ok(TcpPeer::Gone),
        Err(error) => return Err(error.into()),
    };
    let Some(found) = look_up(peer, local)? else { return Ok(TcpPeer::NotHere) };
    let still_connected = matches!(tcp_state(&socket)?, ESTABLISHED | CLOSE_WAIT);
    let held = matches!(found.state, ESTABLISHED | FIN_WAIT1 | FIN_WAIT2) && found.inode != 0;
    Ok(if held && still_connected { TcpPeer::User(found.uid) } else { TcpPeer::Gone })
}

/// Whether this machine can tell whose its TCP sockets are.
///
/// # Errors
/// It can't; the error says why.
pub fn tcp_peers_can_be_told() -> io::Result<()> {
    let listener = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    match tcp_peer(&server)? {
        TcpPeer::User(uid) if uid == crate::users::effective_uid() => Ok(()),
        other => Err(io::Error::other(format!("{client:?} is told to be {other:?}"))),
    }
}

/// Whether an address is one of this machine's own.
///
/// # Errors
/// Those of socket(2) and bind(2), but for the one that says no.
pub fn is_own_address(address: SocketAddr) -> io::Result<bool> {
    // A link-local address is one only together with its interface.
    let mut own = SocketAddr::new(address.ip().to_canonical(), 0);
    if let (SocketAddr::V6(own), SocketAddr::V6(address)) = (&mut own, address) {
        own.set_scope_id(address.scope_id());
    }
    match UdpSocket::bind(own) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Ok(false),
        Err(error) => Err(error),
    }
}

// States of a TCP socket (`net/tcp_states.h`).
const ESTABLISHED: u8 = 1;
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const CLOSE_WAIT: u8 = 8;

/// What the kernel says of a socket.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    state: u8,
    uid: u32,
    /// 0 once no process holds it.
    inode: u32,
}

// From linux/netlink.h, linux/sock_diag.h and linux/inet_diag.h. All integers are in the machine's
// own order but for ports and addresses, which are in the network's.
const NLMSGHDR_BYTES: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const REQUEST_BYTES: usize = NLMSGHDR_BYTES + 56;
/// Where in the whole message the fields of `inet_diag_msg` are that matter here.
const STATE_AT: usize = NLMSGHDR_BYTES + 1;
const UID_AT: usize = NLMSGHDR_BYTES + 64;
const INODE_AT: usize = NLMSGHDR_BYTES + 68;
/// Any number: there is one request and one answer on a socket.
const SEQUENCE: u32 = 1;
/// More than an answer takes, its attributes included; what is longer is cut off behind them.
const ANSWER_BYTES_MAX: usize = 4096;

/// The socket whose own address is `own`, and whose peer's is `other`.
fn look_up(own: SocketAddr, other: SocketAddr) -> io::Result<Option<Found>> {
    let flags = SocketFlags::CLOEXEC;
    let protocol = Some(netlink::SOCK_DIAG);
    let netlink = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
    let request = request(own, other);
    send(&netlink, &request, SendFlags::empty())?;
    answer(&netlink)
}

fn request(own: SocketAddr, other: SocketAddr) -> Vec<u8> {
    // A socket of IPv6 that speaks IPv4 is found by either kind of address.
    let (own_ip, other_ip) = (own.ip().to_canonical(), other.ip().to_canonical());
    let family = if own_ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut bytes = Vec::with_capacity(REQUEST_BYTES);
    bytes.extend(u32::try_from(REQUEST_BYTES).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    bytes.extend(SEQUENCE.to_ne_bytes());
    bytes.extend([0; 4]);
    // inet_diag_req_v2: family, protocol, no extensions, padding, any state.
    bytes.push(u8::try_from(family).unwrap_or(u8::MAX));
    bytes.push(u8::try_from(libc::IPPROTO_TCP).unwrap_or(u8::MAX));
    bytes.extend([0; 2]);
    bytes.extend(u32::MAX.to_ne_bytes());
    // inet_diag_sockid: ports, addresses, any interface, any cookie.
    bytes.extend(own.port().to_be_bytes());
    bytes.extend(other.port().to_be_bytes());
    bytes.extend(address_bytes(own_ip));
    bytes.extend(address_bytes(other_ip));
    bytes.extend([0; 4]);
    bytes.extend([0xff; 8]);
    debug_assert_eq!(bytes.len(), REQUEST_BYTES);
    bytes
}

/// An address in 16 bytes; IPv4 in the first four.
fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(address) => address.octets(),
    }
}

/// The kernel answers within send(2), so the answer is there.
fn answer(netlink: &OwnedFd) -> io::Result<Option<Found>> {
    let mut bytes = [0; ANSWER_BYTES_MAX];
    let (_, count) = recv(netlink, &mut bytes, RecvFlags::DONTWAIT)?;
    let bytes = bytes.get(..count).unwrap_or_default();
    let short = || io::Error::new(io::ErrorKind::InvalidData, "sock_diag's answer is too short");
    let kind = u16::from_ne_bytes(field(bytes, 4).ok_or_else(short)?);
    match kind {
        NLMSG_ERROR => {
            let code = i32::from_ne_bytes(field(bytes, NLMSGHDR_BYTES).ok_or_else(short)?);
            match code.checked_neg() {
                Some(libc::ENOENT) => Ok(None),
                code => Err(io::Error::from_raw_os_error(code.unwrap_or(libc::EIO))),
            }
        }
        SOCK_DIAG_BY_FAMILY => Ok(Some(Found {
            state: u8::from_ne_bytes(field(bytes, STATE_AT).ok_or_else(short)?),
            uid: u32::from_ne_bytes(field(bytes, UID_AT).ok_or_else(short)?),
            inode: u32::from_ne_bytes(field(bytes, INODE_AT).ok_or_else(short)?),
        })),
        other => {
            let message = format!("sock_diag answers with a message of kind {other}");
            Err(io::Error::new(io::ErrorKind::InvalidData, message))
        }
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// The state of a socket of ours: the first byte of `struct tcp_info`.
fn tcp_state(socket: impl AsFd) -> Result<u8, Errno> {
    let mut state = 0_u8;
    let mut bytes: libc::socklen_t = 1;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the pointer is to one writable byte, which is the length that is stated; both outlive
    // the call.
    let code = unsafe {
        libc::getsockopt(
            fd,
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut state).cast(),
            &raw mut bytes,
        )
    };
    errno::of_minus_one(code)?;
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::users::effective_uid;
    use std::io::{Read as _, Write as _};
    use std::net::{Shutdown, TcpListener};
    use std::os::unix::process::CommandExt as _;
    use std::process::{Command, Stdio};

    fn pair(listen: &str, connect: &str) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((listen, 0)).unwrap();
        let client = TcpStream::connect((connect, listener.local_addr().unwrap().port())).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn the_user_of_the_other_end_is_told() {
        let us = TcpPeer::User(effective_uid());
        let mut cases = vec![("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1")];
        if TcpListener::bind(("::1", 0)).is_ok() {
            // The last two are IPv4 on the wire, with a socket of IPv6 at one end.
            cases.extend([("::1", "::1"), ("::", "::1"), ("::", "127.0.0.1")]);
            cases.push(("127.0.0.1", "::ffff:127.0.0.1"));
        } else {
            eprintln!("skipped: no IPv6 on this machine");
        }
        for (listen, connect) in cases {
            let (client, server) = pair(listen, connect);
            assert_eq!(tcp_peer(&server).unwrap(), us, "{listen} {connect}");
            assert_eq!(tcp_peer(&client).unwrap(), us, "{listen} {connect}");
        }
        tcp_peers_can_be_told().unwrap();
    }

    #[test]
    fn who_only_ends_sending_is_still_there() {
        let (client, server) = pair("127.0.0.1", "127.0.0.1");
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(tcp_peer(&server).unwrap(), TcpPeer::User(effective_uid()));
    }

    #[test]
    fn who_has_gone_is_nobody_and_above_all_not_root() {
        if !crate::rig::alone("tcp_peer::tests::who_has_gone_is_nobody_and_above_all_not_root") {
            return;
        }
        let (mut client, server) = pair("127.0.0.1", "127.0.0.1");
        client.write_all(b"id").unwrap();
        drop(client);
        assert_eq!(tcp_peer(&server).unwrap(), TcpPeer::Gone);

        // One that resets the connection: closing with unread bytes does.
        let (client, mut server) = pair("127.0.0.1", "127.0.0.1");
        server.write_all(b"unread").unwrap();
        let mut one = [0];
        client.peek(&mut one).unwrap();
        drop(client);
        assert_ne!(tcp_peer(&server).unwrap(), TcpPeer::User(effective_uid()));
        assert_ne!(tcp_peer(&server).unwrap(), TcpPeer::User(0));
    }

    #[test]
    fn a_listener_is_not_taken_for_a_peer() {
        // The kernel falls back to a socket that listens there.
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let found = look_up(address, "127.0.0.1:9".parse().unwrap()).unwrap();
        assert!(found.is_none_or(|found| found.state != ESTABLISHED));
        let nothing = look_up("127.0.0.1:1".parse().unwrap(), address).unwrap();
        assert_eq!(nothing, None);
    }

    #[test]
    fn another_user_is_told_apart() {
        if effective_uid() != 0 {
            eprintln!("skipped: only root can connect as somebody else");
            return;
        }
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let script = format!("exec 3<>/dev/tcp/127.0.0.1/{port} && read -r -u 3");
        let mut other = Command::new("bash")
            .args(["-c", &script])
            .uid(54_321)
            .gid(54_321)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let (mut server, _) = listener.accept().unwrap();
        assert_eq!(tcp_peer(&server).unwrap(), TcpPeer::User(54_321));
        server.write_all(b"go\n").unwrap();
        assert!(other.wait().unwrap().success());
        server.read_to_end(&mut Vec::new()).unwrap();
        assert_eq!(tcp_peer(&server).unwrap(), TcpPeer::Gone);
    }

    #[test]
    fn own_addresses_are_known() {
        let own = |text: &str| is_own_address(text.parse().unwrap()).unwrap();
        assert!(own("127.0.0.1:80"));
        assert!(own("127.9.9.9:80"));
        assert!(!own("192.0.2.1:80"));
        assert!(!own("[::ffff:192.0.2.1]:80"));
        assert!(own("[::ffff:127.0.0.1]:80"));
        if TcpListener::bind(("::1", 0)).is_ok() {
            assert!(own("[::1]:80"));
            assert!(!own("[2001:db8::1]:80"));
        }
    }
}
