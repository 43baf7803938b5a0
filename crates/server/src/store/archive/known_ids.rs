//! Which ids the index may have, in memory: so that a new one, as nearly every request has, is known to be
//! new without a look into a file.
//!
//! It holds 32 bits of a keyed hash of each id. One that is not in it is not in the index; of one that is,
//! the index has to be asked, which tells the few strangers with the same hash apart.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, BuildHasherDefault, Hasher, RandomState};

use afar_core::job::JobKey;
use tokio::sync::oneshot;

use super::super::index::{Index, IndexError};
use super::keeper::Keeper;

/// The ids, in the making of the index of this generation.
#[derive(Debug, Default)]
pub(super) struct KnownIds {
    hashes: HashSet<u32, BuildHasherDefault<Already>>,
    key: RandomState,
    /// Of which making of the index all ids are there.
    complete: Option<u64>,
    /// The ids of the index on their way here, and which making that is.
    asked: Option<(u64, oneshot::Receiver<Option<Vec<u32>>>)>,
}

impl KnownIds {
    /// What goes to the index from now on.
    pub(super) fn add(&mut self, key: &JobKey) {
        self.hashes.insert(hash(&self.key, &key.scope, key.job.as_str()));
    }

    /// Whether this is certainly not in the index of this generation.
    pub(super) fn is_new(&mut self, key: &JobKey, generation: u64) -> bool {
        if self.complete != Some(generation) {
            self.take(generation);
        }
        let known = self.hashes.contains(&hash(&self.key, &key.scope, key.job.as_str()));
        self.complete == Some(generation) && !known
    }

    /// Has those that are in the index looked up, unless they are here or on their way.
    pub(super) fn load(&mut self, generation: u64, keeper: &mut Keeper) {
        let is_asked = self.asked.as_ref().is_some_and(|(asked, _)| *asked == generation);
        if self.complete == Some(generation) || is_asked {
            return;
        }
        let key = self.key.clone();
        let read = move |index: &mut Index| -> Result<Vec<u32>, IndexError> {
            let mut hashes = Vec::new();
            index.each_id(|scope, id| hashes.push(hash(&key, scope, id)))?;
            Ok(hashes)
        };
        let answer = keeper.ask(move |work| work.with(read));
        self.asked = Some((generation, answer));
    }

    /// Takes what was asked for, if it has come.
    fn take(&mut self, generation: u64) {
        let Some((asked, answer)) = &mut self.asked else { return };
        match answer.try_recv() {
            Err(oneshot::error::TryRecvError::Empty) => return,
            Ok(Some(hashes)) if *asked == generation => {
                self.hashes.extend(hashes);
                self.complete = Some(generation);
            }
            // It could not be read, or was made anew meanwhile.
            _ => {}
        }
        self.asked = None;
    }
}

fn hash(key: &RandomState, scope: &str, id: &str) -> u32 {
    let [a, b, c, d, ..] = key.hash_one((scope, id)).to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// What is a hash already, keyed against whoever chooses ids.
#[derive(Debug, Default)]
struct Already(u64);

impl Hasher for Already {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only u32 are hashed");
    }

    fn write_u32(&mut self, hash: u32) {
        // The table takes its tag from the highest bits, and the place from the lowest.
        self.0 = u64::from(hash) << 32 | u64::from(hash);
    }
}
