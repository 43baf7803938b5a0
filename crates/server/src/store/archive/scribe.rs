//! Who writes the journal: this thread, or one of its own where the directory is on a file server.
//!
//! A local disk takes a record in less time than another thread takes to wake. A file server may not
//! answer, and must not keep anybody waiting but whoever wants a new job: its intent has to be written
//! before its process is started (`J-1.4`). What is said of jobs that run is handed over, in order, and
//! not waited for: of each there is only so much to be said, and meanwhile there are no new ones.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use afar_core::job::{JobKey, Vouch};
use afar_core::journal::{Indexed, JournalRecord, Ledger};
use tokio::sync::oneshot;

use super::super::journal::{Journal, JournalError, next_number, vouch_of};
use super::super::thread::OwnThread;
use crate::log::Log;

/// The answer to an intent that is being written.
pub(super) type Written = oneshot::Receiver<Result<(), JournalError>>;

#[derive(Debug)]
pub(super) enum Scribe {
    Here(Box<Journal>),
    Away(Box<Away>),
}

/// What is known here of a journal that a thread has.
pub(super) struct Away {
    /// What the journal is going to say.
    ledger: Ledger,
    last_number: u64,
    orders: mpsc::Sender<Order>,
    signs: Arc<Signs>,
    /// Behind what it is told by, which is dropped first.
    _thread: OwnThread,
}

#[derive(Debug, Default)]
struct Signs {
    is_behind: AtomicBool,
    /// Whether it was told to catch up and has not done so yet.
    is_told: AtomicBool,
}

enum Order {
    Begin(JournalRecord, oneshot::Sender<Result<(), JournalError>>),
    Append(JournalRecord),
    Forgot(Duration, Box<dyn FnOnce(bool) + Send>),
    CatchUp(Duration),
    /// Everything before this is written, as far as it can be.
    Settled(oneshot::Sender<()>),
}

impl Scribe {
    /// Writes here; or, if that `may_hang`, on a thread, as long as one can be had.
    pub(super) fn new(journal: Journal, may_hang: bool, log: Log) -> Self {
        if !may_hang {
            return Self::Here(Box::new(journal));
        }
        let (ledger, last_number) = (journal.ledger().clone(), journal.last_number());
        let (orders, to_do) = mpsc::channel();
        let signs = Arc::<Signs>::default();
        let work = (journal, to_do, Arc::clone(&signs));
        let thread = OwnThread::start("journal", work, move |(journal, to_do, signs)| {
            write(journal, &to_do, &signs, log);
        });
        match thread {
            Ok(thread) => {
                Self::Away(Box::new(Away { ledger, last_number, orders, signs, _thread: thread }))
            }
            Err((error, (journal, ..))) => {
                log.error(&format!("jobs wait for the journal's file server: no thread: {error}"));
                Self::Here(Box::new(journal))
            }
        }
    }

    /// What the journal says, or is going to say.
    pub(super) fn ledger(&self) -> &Ledger {
        match self {
            Self::Here(journal) => journal.ledger(),
            Self::Away(away) => &away.ledger,
        }
    }

    pub(super) fn incarnation(&self) -> &str {
        self.ledger().began().map_or("", |began| &began.incarnation)
    }

    pub(super) fn vouch(&self) -> Vouch {
        vouch_of(self.ledger())
    }

    pub(super) fn last_number(&self) -> u64 {
        match self {
            Self::Here(journal) => journal.last_number(),
            Self::Away(away) => away.last_number,
        }
    }

    pub(super) fn next_number(&mut self, unix_us: u64) -> u64 {
        match self {
            Self::Here(journal) => journal.next_number(unix_us),
            Self::Away(away) => next_number(&mut away.last_number, unix_us),
        }
    }

    /// Writes an intent: it is written when this returns, or when what it gives says so.
    pub(super) fn begin(&mut self, record: JournalRecord) -> Result<Option<Written>, JournalError> {
        match self {
            Self::Here(journal) => journal.append(record).map(|()| None),
            Self::Away(away) => {
                away.ledger.apply(record.clone())?;
                let (told, written) = oneshot::channel();
                away.order(Order::Begin(record, told));
                Ok(Some(written))
            }
        }
    }

    /// Takes an intent back of which it was said later that it can't be written.
    pub(super) fn withdraw(&mut self, key: &JobKey) {
        if let Self::Away(away) = self {
            away.ledger.withdraw(key);
        }
    }

    /// Writes a later step of a job. What is written on a thread is logged there if it can't be.
    pub(super) fn append(&mut self, record: JournalRecord) -> Result<(), JournalError> {
        match self {
            Self::Here(journal) => journal.append(record),
            Self::Away(away) => {
                away.ledger.apply(record.clone())?;
                away.order(Order::Append(record));
                Ok(())
            }
        }
    }

    pub(super) fn forget(&mut self, numbers: Vec<u64>) -> Result<(), JournalError> {
        self.append(JournalRecord::Indexed(Indexed { numbers }))
    }

    /// See [`Journal::forgot`]; `told` is called with what that says.
    pub(super) fn forgot(
        &mut self,
        since_boot: Duration,
        told: impl FnOnce(bool) + Send + 'static,
    ) {
        match self {
            Self::Here(journal) => told(journal.forgot(since_boot)),
            Self::Away(away) => {
                let since_us = u64::try_from(since_boot.as_micros()).unwrap_or(u64::MAX);
                away.ledger.vouch_from(since_us);
                away.order(Order::Forgot(since_boot, Box::new(told)));
            }
        }
    }

    /// Says when everything is written that was handed over; `None` if it is.
    pub(super) fn settled(&self) -> Option<oneshot::Receiver<()>> {
        let Self::Away(away) = self else { return None };
        let (told, settled) = oneshot::channel();
        away.order(Order::Settled(told));
        Some(settled)
    }

    pub(super) fn is_behind(&self) -> bool {
        match self {
            Self::Here(journal) => journal.is_behind(),
            Self::Away(away) => away.signs.is_behind.load(Ordering::Acquire),
        }
    }

    pub(super) fn catch_up(&mut self, since_boot: Duration) {
        match self {
            Self::Here(journal) => journal.catch_up(since_boot),
            Self::Away(away) => {
                if away.signs.is_behind.load(Ordering::Acquire)
                    && !away.signs.is_told.swap(true, Ordering::AcqRel)
                {
                    away.order(Order::CatchUp(since_boot));
                }
            }
        }
    }
}

impl Away {
    fn order(&self, order: Order) {
        // The thread lives as long as this.
        let _ = self.orders.send(order);
    }
}

impl fmt::Debug for Away {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Away").field("signs", &self.signs).finish_non_exhaustive()
    }
}

/// What the thread does.
fn write(mut journal: Journal, to_do: &mpsc::Receiver<Order>, signs: &Signs, log: Log) {
    for order in to_do {
        match order {
            Order::Begin(record, told) => {
                // Whoever has asked takes an intent back that was written too late.
                let _ = told.send(journal.append(record));
            }
            Order::Append(record) => {
                if let Err(error) = journal.append(record) {
                    log.error(&error.to_string());
                }
            }
            Order::Settled(told) => drop(told.send(())),
            Order::Forgot(since_boot, told) => told(journal.forgot(since_boot)),
            Order::CatchUp(since_boot) => {
                journal.catch_up(since_boot);
                signs.is_told.store(false, Ordering::Release);
            }
        }
        signs.is_behind.store(journal.is_behind(), Ordering::Release);
    }
}
