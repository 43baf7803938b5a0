//! A thread of the store, which is waited for when whoever has it goes, though not for ever.

use std::io;
use std::sync::mpsc;

use super::limits::THREAD_PATIENCE;

/// A thread that does what it was ordered until nobody can order anything any more.
///
/// On drop it is waited for, [`THREAD_PATIENCE`] at most: whoever drops it has hung up before. A disk that
/// takes longer takes for ever, and must not keep the process.
#[derive(Debug)]
pub(super) struct OwnThread {
    /// Closed by the thread's end.
    alive: mpsc::Receiver<()>,
}

impl OwnThread {
    /// Starts one with what it is to have.
    ///
    /// # Errors
    /// No thread can be had: then it comes back, for another try.
    pub(super) fn start<T: Send + 'static>(
        name: &str,
        work: T,
        run: impl FnOnce(T) + Send + 'static,
    ) -> Result<Self, (io::Error, T)> {
        let (give, given) = mpsc::channel::<T>();
        let (alive_there, alive) = mpsc::channel();
        let spawned = spawn(name, move || {
            let _alive = alive_there;
            if let Ok(work) = given.recv() {
                run(work);
            }
        });
        match spawned {
            Ok(()) => {
                // It waits for it.
                let _ = give.send(work);
                Ok(Self { alive })
            }
            Err(error) => Err((error, work)),
        }
    }
}

impl Drop for OwnThread {
    fn drop(&mut self) {
        let _ = self.alive.recv_timeout(THREAD_PATIENCE);
    }
}

#[cfg(test)]
thread_local! {
    /// How many threads can't be had from here on.
    pub(super) static DENIED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    #[cfg(test)]
    if let Some(left) = DENIED.get().checked_sub(1) {
        DENIED.set(left);
        return Err(rustix::io::Errno::AGAIN.into());
    }
    std::thread::Builder::new().name(name.to_owned()).spawn(run).map(drop)
}
