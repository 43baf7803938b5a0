//! What is typed at our terminal, for a job with a terminal of its own.

use std::io;
use std::thread;

use afar_client::Stdin;
use bytes::Bytes;
use rustix::io::Errno;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::escapes::{Escape, EscapeCharacter, Escapes, Typed};
use super::stdin::wait_readable;

/// Keys of one read: a paste comes in pieces of 4 KiB.
const READ_BYTES: usize = 16 * 1024;

/// What the keys ask of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Escape(Escape),
    /// The terminal is gone.
    HungUp,
}

/// Sends what is typed, and tells what of it is meant for us. The thread is never waited for, as with
/// [`stdin`](super::stdin); it reads on when the job takes no more, because the way out is typed too.
pub(super) fn pump(stdin: Stdin, escape: EscapeCharacter) -> io::Result<UnboundedReceiver<Wish>> {
    let (wishes, receiver) = unbounded_channel();
    let runtime = tokio::runtime::Handle::current();
    thread::Builder::new().name("keys".to_owned()).spawn(move || {
        let mut stdin = Some(stdin);
        copy(&mut stdin, Escapes::new(escape), &wishes, &runtime);
        let _ = wishes.send(Wish::HungUp);
        // It is kept until we are gone: dropping it would type its end.
        loop {
            thread::park();
        }
    })?;
    Ok(receiver)
}

fn copy(
    stdin: &mut Option<Stdin>,
    mut escapes: Escapes,
    wishes: &UnboundedSender<Wish>,
    runtime: &tokio::runtime::Handle,
) {
    let mut buffer = [0; READ_BYTES];
    loop {
        match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
            Ok(0) => return,
            Ok(read) => {
                for typed in escapes.take(buffer.get(..read).unwrap_or_default()) {
                    match typed {
                        Typed::Escape(escape) => {
                            let _ = wishes.send(Wish::Escape(escape));
                        }
                        Typed::Keys(keys) => {
                            if let Some(open) = stdin
                                && runtime.block_on(open.write(Bytes::from(keys))).is_err()
                            {
                                *stdin = None;
                            }
                        }
                    }
                }
            }
            Err(Errno::INTR) => {}
            // Somebody else has made it non-blocking.
            Err(Errno::AGAIN) => {
                if wait_readable().is_err() {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}
