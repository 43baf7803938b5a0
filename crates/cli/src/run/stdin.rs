//! Our stdin, read by a thread of its own and sent as the command takes it.

use std::io;
use std::thread;

use afar_client::Stdin;
use bytes::Bytes;
use rustix::fs::{FileType, Stat, fstat, major, minor};
use rustix::io::Errno;

use crate::console::say;

/// Bytes that one read takes at most.
const READ_BYTES: usize = 128 * 1024;

/// A read that brought less than this is copied, because that costs less than giving back the rest of
/// the buffer.
const COPIED_BYTES: usize = 8 * 1024;

/// Whether stdin is `/dev/null`, which has nothing to send.
pub(super) fn is_null() -> bool {
    fstat(rustix::stdio::stdin()).is_ok_and(|stat| is_null_device(&stat))
}

/// Whether this is `/dev/null`, whatever it is called.
pub(super) fn is_null_device(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && (major(stat.st_rdev), minor(stat.st_rdev)) == (1, 3)
}

/// Sends stdin until its end, or until the command takes no more.
///
/// The thread is never waited for: it may be in a read that nobody can end, because an inherited
/// descriptor must not be made non-blocking, and the program's end ends it.
pub(super) fn pump(stdin: Stdin) {
    let runtime = tokio::runtime::Handle::current();
    let spawned = thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        if let Err(error) = copy(stdin, &runtime) {
            say(&format!(
                "stream: stdin could not be read to its end: {error}; the command was started"
            ));
        }
    });
    if let Err(error) = spawned {
        say(&format!("stream: stdin could not be read: {error}; the command was started"));
    }
}

fn copy(mut stdin: Stdin, runtime: &tokio::runtime::Handle) -> io::Result<()> {
    loop {
        let mut buffer = Vec::with_capacity(READ_BYTES);
        let spare = rustix::buffer::spare_capacity(&mut buffer);
        match rustix::io::read(rustix::stdio::stdin(), spare) {
            Ok(0) => return Ok(()),
            Ok(read) => {
                // What was read waits for its acknowledgement: megabytes of it in small pieces, none of
                // which may hold a whole buffer.
                let bytes = if read < COPIED_BYTES {
                    Bytes::copy_from_slice(&buffer)
                } else {
                    buffer.shrink_to_fit();
                    Bytes::from(buffer)
                };
                // A command that takes no more is no fault: `head` does it.
                if runtime.block_on(stdin.write(bytes)).is_err() {
                    return Ok(());
                }
            }
            Err(Errno::INTR) => {}
            // Somebody else has made it non-blocking.
            Err(Errno::AGAIN) => wait_readable()?,
            // A terminal that hung up has ended.
            Err(Errno::IO) if rustix::termios::isatty(rustix::stdio::stdin()) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until there is something to be read.
pub(super) fn wait_readable() -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    let stdin = rustix::stdio::stdin();
    match poll(&mut [PollFd::new(&stdin, PollFlags::IN)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
