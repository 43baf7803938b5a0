//! Starts of supervisors: one of a user at a time, for whoever waits for it.
//!
//! A start blocks, for as long as a home on a server or a supervisor that was stopped lets it. So a
//! user's logins share one, and that user has one thread with it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::Instant;

use crate::launch::{LaunchError, Launched};
use crate::limits::{LAUNCH_PATIENCE, LAUNCH_WAITERS_MAX};

/// How a start went, for all who have waited for it; `None` while it is under way.
type Outcome = Option<Result<(), Arc<LaunchError>>>;

/// The starts that are under way, by uid, for all threads of a listener.
#[derive(Clone, Debug, Default)]
pub(super) struct Launches(Arc<Mutex<BTreeMap<u32, watch::Sender<Outcome>>>>);

/// One of them. It is under way until this is dropped.
struct Flight {
    launches: Launches,
    uid: u32,
    /// `None` until it has ended, and for one that broke off.
    outcome: Outcome,
}

impl Launches {
    /// Has `launch` run on a thread of its own, unless one for this user is under way: then its end is
    /// awaited, and `None` says that it went well, so that there is somebody to connect to.
    ///
    /// One that was begun goes on when this is dropped.
    ///
    /// # Errors
    /// Those of the one that ran; [`LaunchError::Busy`] if too many wait already, and
    /// [`LaunchError::Overlong`] if it takes too long.
    pub(super) async fn launch(
        &self,
        uid: u32,
        launch: impl FnOnce() -> Result<Launched, LaunchError> + Send + 'static,
    ) -> Result<Option<Launched>, Arc<LaunchError>> {
        let deadline = Instant::now() + LAUNCH_PATIENCE;
        let under_way = match self.lock().entry(uid) {
            Entry::Vacant(free) => {
                free.insert(watch::Sender::new(None));
                None
            }
            Entry::Occupied(taken) if taken.get().receiver_count() >= LAUNCH_WAITERS_MAX => {
                return Err(Arc::new(LaunchError::Busy));
            }
            Entry::Occupied(taken) => Some(taken.get().subscribe()),
        };
        if let Some(mut under_way) = under_way {
            let ended =
                tokio::time::timeout_at(deadline, under_way.wait_for(Option::is_some)).await;
            return match ended {
                Ok(Ok(outcome)) => outcome.clone().unwrap_or(Ok(())).map(|()| None),
                Ok(Err(_)) => Err(Arc::new(no_thread(io::Error::other("the start broke off")))),
                Err(_) => Err(Arc::new(LaunchError::Overlong)),
            };
        }
        let flight = Flight { launches: self.clone(), uid, outcome: None };
        let done = tokio::task::spawn_blocking(move || flight.end(launch()));
        match done.await {
            Ok(launched) => launched.map(Some),
            Err(error) => Err(Arc::new(no_thread(io::Error::other(error)))),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, watch::Sender<Outcome>>> {
        // The map is whole after every statement, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn no_thread(source: io::Error) -> LaunchError {
    LaunchError::Io { action: "cannot start the supervisor", source }
}

impl Flight {
    fn end(mut self, result: Result<Launched, LaunchError>) -> Result<Launched, Arc<LaunchError>> {
        let result = result.map_err(Arc::new);
        self.outcome = Some(result.as_ref().map(|_| ()).map_err(Arc::clone));
        result
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        // Those who wait look again, and may begin another one.
        let waiting = self.launches.lock().remove(&self.uid);
        if let (Some(waiting), Some(outcome)) = (waiting, self.outcome.take()) {
            waiting.send_replace(Some(outcome));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    fn launched() -> Result<Launched, LaunchError> {
        Ok(Launched { stream: UnixStream::pair().unwrap().0, started: None })
    }

    /// Polls once.
    async fn begun<F: Future + Unpin>(future: &mut F) -> bool {
        tokio::time::timeout(Duration::ZERO, future).await.is_err()
    }

    #[tokio::test]
    async fn logins_of_one_user_share_a_start_and_its_failure() {
        let launches = Launches::default();
        for succeeds in [true, false] {
            let (go, gone) = mpsc::channel::<()>();
            let launch = move || {
                let _ = gone.recv();
                if succeeds { launched() } else { Err(LaunchError::Ending) }
            };
            let mut first = Box::pin(launches.launch(1, launch));
            assert!(begun(&mut first).await);
            let second = || panic!("a second one was started");
            let mut waiting: Vec<_> =
                (0..20).map(|_| Box::pin(launches.launch(1, second))).collect();
            for waiting in &mut waiting {
                assert!(begun(waiting).await);
            }
            // Another user's does not wait for it.
            assert!(launches.launch(2, launched).await.unwrap().is_some());
            go.send(()).unwrap();
            assert_eq!(first.await.is_ok(), succeeds);
            for waiting in waiting {
                match waiting.await {
                    Ok(looks_again) => assert!(succeeds && looks_again.is_none()),
                    Err(error) => assert!(!succeeds && matches!(*error, LaunchError::Ending)),
                }
            }
            assert!(launches.lock().is_empty());
        }
        assert!(launches.launch(1, launched).await.unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_for_a_start_are_bounded_in_number_and_in_time() {
        let launches = Launches::default();
        let flight = Flight { launches: launches.clone(), uid: 1, outcome: None };
        let sender = watch::Sender::new(None);
        let waiting: Vec<_> = (0..LAUNCH_WAITERS_MAX - 1).map(|_| sender.subscribe()).collect();
        launches.lock().insert(1, sender);
        let overlong = launches.launch(1, launched).await.unwrap_err();
        assert!(matches!(*overlong, LaunchError::Overlong));
        let mut last = Box::pin(launches.launch(1, launched));
        assert!(begun(&mut last).await);
        let one_more = launches.launch(1, launched).await.unwrap_err();
        assert!(matches!(*one_more, LaunchError::Busy));
        // One that broke off has ended.
        drop(flight);
        assert!(last.await.is_err());
        drop(waiting);
        assert!(launches.launch(1, launched).await.unwrap().is_some());
    }
}
