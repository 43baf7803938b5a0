//! Tells that connections are accepted: the ready file, and systemd's notification.

use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};
use std::path::Path;

use afar_net::files::{FileError, Replacement};

use super::{Ready, ServeError};

/// Writes the ready file and notifies the service manager, where either is wanted.
pub(super) fn announce(ready: &Ready, ready_file: Option<&Path>) -> Result<(), ServeError> {
    if let Some(path) = ready_file {
        write_ready_file(ready, path).map_err(ServeError::ReadyFile)?;
    }
    notify_ready();
    Ok(())
}

/// Whoever waits for the file must never read half of it: it appears whole or not at all. It may be
/// wanted in a directory that others can write too.
fn write_ready_file(ready: &Ready, path: &Path) -> Result<(), FileError> {
    let addresses = ready.addresses.iter().chain(&ready.classic);
    let text: String = addresses.map(|address| format!("{address}\n")).collect();
    Replacement::prepare(path)?.place(text.as_bytes())
}

/// Says that the service is ready, or ready again.
pub(super) fn notify_ready() {
    notify("READY=1\n");
}

/// Says that the configuration is being read, until [`notify_ready`] (`Type=notify-reload`).
pub(super) fn notify_reloading() {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let micros = now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1000);
    notify(&format!("RELOADING=1\nMONOTONIC_USEC={micros}\n"));
}

/// Sends a state to `$NOTIFY_SOCKET` (sd_notify(3)). A service manager that can't be told times the
/// start out and says so itself, so there is nothing to do about a failure here.
fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let Ok(socket) = UnixDatagram::unbound() else { return };
    match path.as_bytes().split_first() {
        Some((b'@', name)) => {
            use std::os::linux::net::SocketAddrExt as _;
            if let Ok(address) = UnixAddr::from_abstract_name(name) {
                let _ = socket.send_to_addr(state.as_bytes(), &address);
            }
        }
        _ => {
            let _ = socket.send_to(state.as_bytes(), &path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_63_a_planted_link_is_not_written_through() {
        let directory = tempfile::tempdir().unwrap();
        let (path, precious) = (directory.path().join("ready"), directory.path().join("precious"));
        std::fs::write(&precious, "mine").unwrap();
        std::os::unix::fs::symlink(&precious, &path).unwrap();
        let addresses = vec!["127.0.0.1:2327".parse().unwrap()];
        let classic = vec!["[::1]:8080".parse().unwrap()];
        let ready = Ready { addresses, classic, host_keys: Vec::new(), created: None };
        write_ready_file(&ready, &path).unwrap();
        let written = std::fs::read_to_string(&path).unwrap();
        assert_eq!(written, "127.0.0.1:2327\n[::1]:8080\n");
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "mine");
    }
}
